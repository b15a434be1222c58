"""Passes on a real small Wan pipeline with two experts: both get the pass, both lose it again."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from planner.case.device import Device
from planner.hooks.linear import layers
from planner.passes import registry
from planner.plans.graph import build
from planner.plans.plan import Plan
from planner.run.apply import put_on
from planner.tuning.target import case_on
from tests.passes.driving import traces
from tests.tiny import WAN_CALL, tiny_case, tiny_wan

EXPERTS = ("transformer", "transformer_2")
BOTH = ("compile_blocks", "fp8_dynamic", "int8_dynamic", "int8_weight")


def draw(pipe: Any) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(0)
    call = {} if hasattr(type(pipe), "_planner_handle") else WAN_CALL
    drawn: torch.Tensor = pipe("a red star", generator=generator, output_type="latent",
                               **call).frames  # fmt: skip
    return drawn


@pytest.fixture(scope="module")
def shared() -> Any:
    return tiny_wan(experts=2)


@pytest.fixture
def pipe(shared: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The pipeline, as untouched after the test as before; torchao's guard of CPUs is lifted."""
    monkeypatch.setattr(
        "torchao.quantization.quant_api._check_hardware_support", lambda granularity: None
    )
    yield shared
    assert [trace for name in EXPERTS for trace in traces(getattr(shared, name))] == []


def test_both_experts_run_in_one_call(pipe: Any) -> None:
    seen: list[str] = []
    hooks = [
        getattr(pipe, name).register_forward_pre_hook(lambda *_, name=name: seen.append(name))
        for name in EXPERTS
    ]
    draw(pipe)
    for hook in hooks:
        hook.remove()
    assert set(seen) == {*EXPERTS} and len(seen) == 8


@pytest.mark.parametrize("name", BOTH)
def test_a_pass_is_on_both_experts_and_off_again(pipe: Any, name: str) -> None:
    untouched = draw(pipe)
    with put_on(pipe, Plan.of({name: {}}), tiny_case(pipe, WAN_CALL), {}) as handle:
        changed = draw(pipe)
        found = handle.stats[name]
    assert found["blocks" if name == "compile_blocks" else "layers"] == (
        6 if name == "compile_blocks" else 2 * 3 * 10
    )
    assert torch.allclose(changed, untouched, atol=0.3)
    if name != "compile_blocks":
        assert not torch.equal(changed, untouched)
    assert torch.equal(draw(pipe), untouched)


def test_modelopts_layers_stand_in_both_experts_and_leave(pipe: Any) -> None:
    untouched = draw(pipe)
    plan = Plan.of({"int8_weight": {"library": "modelopt"}})
    with put_on(pipe, plan, tiny_case(pipe, WAN_CALL), {}):
        for name in EXPERTS:
            expert = getattr(pipe, name)
            kinds = {type(m).__name__ for m in expert.blocks.modules()}
            assert any(kind.startswith("RealQuant") for kind in kinds)
        draw(pipe)
    assert torch.equal(draw(pipe), untouched)


def test_edges_are_those_of_each_expert(pipe: Any) -> None:
    settings = registry.get("int8_dynamic").settings(edges=1)
    found, left = layers(pipe, settings)
    places = {".".join(path.split(".")[:3]) for path, _ in found}
    assert places == {"transformer.blocks.1", "transformer_2.blocks.1"}
    assert "transformer_2.blocks.0.attn1.to_q" in left


def test_the_effect_halves_the_weights_of_both() -> None:
    from planner.prediction.meta import work_of

    work = work_of("wan2.2-t2v-a14b", height=480, width=832, frames=5, steps=4)
    fp8 = registry.get("fp8_dynamic")
    after = fp8.effect(work, fp8.settings(), None)
    before = {part.name: part.bytes for part in work.parts}
    for part in after.parts:
        share = part.bytes / before[part.name]
        assert share == pytest.approx(0.5, abs=0.02) if part.phase == "denoise" else share == 1


def test_a_gpu_may_quantize_and_compile_two_experts_and_not_cache_them() -> None:
    from planner.catalog.devices import card

    graph = build(case_on("wan2.2-t2v-a14b", card("h100-sxm"), height=480, width=832, frames=5))
    assert {*BOTH} <= {one.name for one in graph.legal}
    assert "needs one denoiser" in graph.excluded["first_block_cache"]
    assert isinstance(card("h100-sxm").device({}), Device)
