"""The denoiser's weights, streamed in."""

from typing import Any

import pytest
import torch

from planner.case.work import Part
from planner.errors import TrialFailed
from planner.passes import registry
from planner.plans.graph import build
from planner.plans.plan import Plan
from tests.passes.driving import Bench, declared_bench
from tests.passes.gpus import heavy_work, on_gpu

PASS = registry.get("group_offload")


def settings(**values: Any) -> Any:
    """Return settings with these values."""
    return registry.settings_of("group_offload", values)


@pytest.mark.parametrize(("values", "groups"), [
    ({"level": "block"}, 5), ({"level": "block", "blocks": 2}, 3), ({"level": "leaf"}, 60),
])  # fmt: skip
def test_groups_move_and_the_picture_is_the_same(
    bench: Bench, values: dict[str, Any], groups: int
) -> None:
    untouched = bench.draw()
    with declared_bench().put({"group_offload": values | {"stream": False}}) as handle:
        assert torch.equal(bench.draw(), untouched)
        assert handle.stats["group_offload"] == {"groups": groups}
        assert bench.pipe._execution_device == torch.device("cpu")
    assert torch.equal(bench.draw(), untouched)


@pytest.mark.parametrize("level", ["block", "leaf"])
def test_the_effect_counts_the_bytes_that_groups_really_bring_in(
    bench: Bench, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.hooks.group_offloading import ModuleGroup

    moved = []
    real = ModuleGroup._onload_from_memory

    def onload(group: Any) -> None:
        inside = [weight for module in group.modules for weight in module.parameters()]
        moved.append(sum(weight.nbytes for weight in {*inside, *group.parameters}))
        real(group)

    monkeypatch.setattr(ModuleGroup, "_onload_from_memory", onload)
    with declared_bench().put({"group_offload": {"level": level, "stream": False}}):
        bench.draw()
    weights = list(bench.pipe.transformer.parameters())
    part = Part(
        name="transformer", phase="denoise", parameters=sum(one.numel() for one in weights),
        bytes=sum(one.nbytes for one in weights),
    )  # fmt: skip
    work = bench.work.model_copy(update={"parts": (part,)})
    after = PASS.effect(work, settings(level=level, stream=False), None)
    there_and_back = sum(phase.transfers for phase in after.phases)
    assert sum(moved) == there_and_back / 2


def test_a_cache_decides_beneath_the_moves(bench: Bench) -> None:
    cache: dict[str, Any] = {"tea_cache": {"threshold": 0.5, "start": 0.0}}
    with bench.put(cache) as handle:
        expected = bench.draw()
        mask = handle.stats["tea_cache"]["mask_cond"]
    with declared_bench().put(cache | {"group_offload": {"stream": False}}) as handle:
        assert torch.equal(bench.draw(), expected)
        assert handle.stats["tea_cache"]["mask_cond"] == mask and "0" in str(mask)


def test_a_stream_on_a_cpu_is_refused_by_diffusers_and_leaves_no_trace(bench: Bench) -> None:
    untouched = bench.draw()
    with pytest.raises(TrialFailed, match="backend implements streams"):
        declared_bench().put({"group_offload": {"stream": True}})
    assert torch.equal(bench.draw(), untouched)


def test_several_blocks_on_a_stream_are_refused_before_diffusers_makes_it_one() -> None:
    why = build(on_gpu()).why_not(Plan.of({"group_offload": {"blocks": 4}}))
    assert why is not None and "one block at a time on a stream; blocks is 4" in why
    fine = Plan.of({"group_offload": {"blocks": 4, "stream": False}})
    assert build(on_gpu()).why_not(fine) is None


def test_every_forward_streams_the_denoiser_and_a_skipped_stack_does_not() -> None:
    after = PASS.effect(heavy_work(), settings(), None)
    assert [phase.transfers for phase in after.phases] == [0, 5000, 5000, 0]
    assert after.phases[1].overlapped and after.parts[1].place == "streamed"
    plain = PASS.effect(heavy_work(), settings(stream=False), None)
    assert plain.phases[1].transfers == 10_000 and not plain.phases[1].overlapped
    cached = PASS.effect(heavy_work(share=0.4), settings(), None)
    assert cached.phases[1].transfers == pytest.approx(2000)


@pytest.mark.parametrize(("values", "window"), [
    ({"stream": False}, 100 + 100), ({"stream": True}, 100 + 200),
    ({"stream": False, "blocks": 4}, 500), ({"stream": False, "level": "leaf"}, 100),
    ({"level": "leaf"}, 200),
])  # fmt: skip
def test_the_window_is_what_stands_outside_the_blocks_and_the_groups_on_the_device(
    values: dict[str, Any], window: float
) -> None:
    after = PASS.effect(heavy_work(), settings(**values), None)
    assert after.parts[1].window == pytest.approx(window)


def test_single_layers_and_compiled_blocks_are_advised_against() -> None:
    graph = build(on_gpu())
    leaf = Plan.of({"group_offload": {"level": "leaf"}, "compile_blocks": {}})
    assert "breaks the compiled block's graph" in graph.advice(leaf)[0]
    assert graph.advice(Plan.of({"group_offload": {}, "compile_blocks": {}})) == ()
