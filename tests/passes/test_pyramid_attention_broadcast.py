"""Attention that runs every few steps and answers with its last output in between."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from planner.hooks import attention
from planner.hooks.attention import attention_in, kind_of, kinds_at
from planner.hooks.branches import Hook, attach
from planner.hooks.residence import swept
from planner.passes import registry
from planner.passes.caching.pyramid_attention_broadcast import (
    PyramidAttentionBroadcastSettings,
    runs,
)
from planner.plans.graph import build
from planner.plans.plan import Plan
from planner.prediction.trace import trace
from planner.run.apply import LeavesCaseWarning, put_on
from planner.run.traits import traits_of
from tests.cases import TRAITS, flux_case
from tests.passes.driving import Bench, traces
from tests.passes.parts import Products, attention_ran, flops, put_inside, said
from tests.test_families import FAMILIES, denoiser
from tests.tiny import WAN_CALL, tiny_case, tiny_wan

PASS = registry.get("pyramid_attention_broadcast")
NAME = "pyramid_attention_broadcast"
CROSS = {"WanTransformer3DModel", "LTXVideoTransformer3DModel", "PixArtTransformer2DModel"}


def mask(steps: int = 20, kind: str = "spatial", **settings: Any) -> str:
    chosen = PyramidAttentionBroadcastSettings(**settings)
    return "".join("01"[runs(chosen, kind, step, steps)] for step in range(steps))


def test_inside_the_stretch_each_kind_runs_every_so_often() -> None:
    assert mask(spatial=2) == "11111010101010101011"
    assert mask(spatial=3, start=0.0, stop=1.0) == "10010010010010010010"
    assert mask(kind="cross") == "11111000001000001011"
    assert mask(kind="temporal", temporal=1) == "1" * 20


@pytest.mark.parametrize("settings", [
    {"spatial": 2}, {"spatial": 3, "start": 0.0, "stop": 1.0}, {"spatial": 4, "start": 0.1},
])  # fmt: skip
def test_the_effect_spares_what_is_really_spared(bench: Bench, settings: dict[str, Any]) -> None:
    untouched = flops(bench)
    with bench.put({NAME: settings}) as handle:
        spared = untouched - flops(bench)
        found = handle.stats[NAME]
    after = PASS.effect(bench.work, PASS.settings(**settings), None)
    assert spared == pytest.approx(said(bench.work) - said(after), rel=1e-6) and spared > 0
    assert found["mask_cond"] == found["mask_uncond"] == mask(10, **settings)


def test_the_effect_holds_the_bytes_that_the_outputs_take(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    real = attention._Outputs.keep

    def keep(outputs: Any, place: int, made: Any) -> None:
        real(outputs, place, made)
        known = [one for branch in outputs._branches._states.values() for one in branch.values()]
        flat = [tensor for one in known for output in one
                for tensor in (output if isinstance(output, tuple) else (output,))]  # fmt: skip
        held.append(sum(tensor.nbytes for tensor in flat))

    monkeypatch.setattr(attention._Outputs, "keep", keep)
    with bench.put({NAME: {}}):
        bench.draw()
    after = PASS.effect(bench.work, PASS.settings(), None)
    assert after.kept == pytest.approx(max(held), rel=0.02) and held[-1] == 0


# Mochi asks for autocast in float32, which a CPU has not: it says so and computes in float32.
@pytest.mark.filterwarnings("ignore:In CPU autocast")
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_same_from_the_same_input_without_running_attention(
    name: str,
) -> None:
    module, call = denoiser(name)
    untouched = call()
    every = {"spatial": 3, "cross": 5, "start": 0.0, "stop": 1.0}
    with attention_ran(module) as ran:
        call()
        full = dict(ran)
    with attention_ran(module) as ran, put_inside(module, 9, {NAME: every}) as (_, step):
        for at in range(9):
            ran.clear()
            assert torch.equal(call(), untouched)
            wanted = {"spatial": at % 3 == 0, "cross": at % 5 == 0}
            assert ran == {kind: count for kind, count in full.items() if wanted[kind]}
            step()
    assert traces(module) == [] and torch.equal(call(), untouched)
    assert ("cross" in full) == (name in CROSS) and full["spatial"]


@pytest.mark.parametrize("name", FAMILIES)
def test_kinds_by_name_are_the_kinds_of_the_modules(name: str) -> None:
    module, _ = denoiser(name)
    for place in attention_in(module):
        named = tuple(kind_of(place.listed, path, place.parts) for path in place.parts)
        assert named == kinds_at(place)
    there = ("spatial", "cross") if name in CROSS else ("spatial",)
    assert traits_of(SimpleNamespace(transformer=module)).attention == there


def test_a_second_joint_attention_is_not_taken_for_cross_attention() -> None:
    from diffusers import SD3Transformer2DModel

    config = FAMILIES["SD3Transformer2DModel"] | {"dual_attention_layers": (0,)}
    module = SD3Transformer2DModel(**config)
    first = attention_in(module)[0]
    assert first.parts == ("attn", "attn2") and kinds_at(first) == ("spatial", "spatial")


class Branch(Hook):
    """Remembers which branch a denoiser is called for."""

    def __init__(self) -> None:
        super().__init__()
        self.now = ""

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.now = self.branch
        return args, kwargs


@contextmanager
def computed_by_branch(pipe: Any) -> Iterator[dict[str, int]]:
    """Count how often the first attention's queries are computed, by branch."""
    found, branch = {"cond": 0, "uncond": 0}, Branch()

    def count(*_: Any) -> None:
        found[branch.now] += 1

    undo: Callable[[], None] = attach(pipe.transformer, pipe.transformer, branch, "branch")
    queries = pipe.transformer.transformer_blocks[0].attn.to_q
    hook = queries.register_forward_pre_hook(count)
    yield found
    hook.remove()
    undo()


def test_diffusers_own_gives_one_branch_the_other_ones_outputs_and_ours_does_not(
    bench: Bench,
) -> None:
    from diffusers.hooks import (
        HookRegistry,
        PyramidAttentionBroadcastConfig,
        apply_pyramid_attention_broadcast,
    )

    pipe = bench.pipe
    apply_pyramid_attention_broadcast(pipe.transformer, PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=lambda: pipe.current_timestep,
    ))  # fmt: skip
    with computed_by_branch(pipe) as found:
        bench.draw()
    for module in pipe.transformer.modules():
        HookRegistry.check_if_exists_or_initialize(module).remove_hook(NAME, recurse=False)
    swept(pipe.transformer)
    # It counts calls: cond is 0, 2, 4 …, uncond 1, 3, 5 … and never computes anything of its own.
    assert found == {"cond": 10, "uncond": 0}
    with bench.put({NAME: {"start": 0.0, "stop": 1.0}}), computed_by_branch(pipe) as found:
        bench.draw()
    assert found == {"cond": 5, "uncond": 5}


def test_a_branch_that_resumes_computes_first(bench: Bench) -> None:
    plan = {"guidance_interval": {"start": 0.3, "stop": 0.8},
            NAME: {"spatial": 4, "start": 0.0, "stop": 1.0}}  # fmt: skip
    with bench.put(plan) as handle:
        bench.draw()
        found = handle.stats[NAME]
    assert found["mask_cond"] == "1000100010" and found["mask_uncond"] == "---11000"


def test_two_experts_each_keep_their_own_and_the_effect_knows() -> None:
    pipe = tiny_wan(experts=2)
    case = tiny_case(pipe, WAN_CALL)
    steps = case.workload.model_copy(update={"call": case.workload.call | {
        "num_inference_steps": 12}})  # fmt: skip
    case = case.model_copy(update={"workload": steps})
    work = trace(pipe, steps)
    plan = Plan.of({NAME: {"spatial": 3, "cross": 4, "start": 0.0, "stop": 1.0}})
    calls = {"transformer": 0, "transformer_2": 0}

    def computed() -> float:
        hooks = [getattr(pipe, name).patch_embedding.register_forward_pre_hook(
            lambda *_, name=name: calls.update({name: calls[name] + 1})
        ) for name in calls]  # fmt: skip
        with Products() as counted:
            generator = torch.Generator("cpu").manual_seed(0)
            pipe("a red star", generator=generator, output_type="latent", **steps.call)
        for hook in hooks:
            hook.remove()
        return counted.flops

    untouched = computed()
    first = calls["transformer"] / 2
    halves = [phase.model_copy(update={"calls": count}) for count in (first, 12 - first)
              for phase in work.phases if phase.name == "denoise"]  # fmt: skip
    split = work.model_copy(update={"phases": tuple(halves)})
    with put_on(pipe, plan, case):
        spared = untouched - computed()
    settings = plan.passes[0].parsed()
    assert 2 <= first <= 10 and first % 3 and first % 4
    assert spared == pytest.approx(said(split) - said(PASS.effect(split, settings, None)))
    assert traces(pipe.transformer) == traces(pipe.transformer_2) == []


def test_a_call_of_another_length_keeps_the_shares_of_the_schedule(bench: Bench) -> None:
    with bench.put({NAME: {}}) as handle:
        with pytest.warns(LeavesCaseWarning):
            bench.draw(num_inference_steps=20)
        assert handle.stats[NAME]["mask_cond"] == mask()


def test_compiled_blocks_stay_whole_and_give_the_same(captures: dict[str, Any]) -> None:
    module, call = denoiser("WanTransformer3DModel")
    untouched = call()
    plan = {NAME: {"spatial": 2, "cross": 3, "start": 0.0, "stop": 1.0}, "compile_blocks": {}}
    with put_inside(module, 12, plan) as (found, step):
        for _ in range(12):
            assert torch.allclose(call(), untouched, rtol=1e-4, atol=1e-5)
            step()
        assert found[NAME]["mask_single"] == "100000100000"
    # Both run, the one or the other does, none does: whatever the steps.
    assert captures["stats"]["unique_graphs"] == 4 and not captures["graph_break"]


def test_beside_a_cache_of_steps_and_in_a_captured_graph_it_is_refused_with_reasons() -> None:
    graph = build(flux_case())
    said = graph.why_not(Plan.of({NAME: {}, "tea_cache": {}}))
    assert said is not None and said.startswith(
        f"{NAME} counts on attention that tea_cache does not run at the steps it skips"
    )
    assert "enable_cache" in said
    both = graph.why_not(Plan.of({NAME: {}, "faster_cache": {}}))
    assert both is not None and "both own denoiser.attention_reuse" in both
    few = graph.why_not(Plan.of({"steps": {"num_inference_steps": 8}, NAME: {}}))
    assert few is not None and f"{NAME} finds nothing to reuse in 8 steps" in few


def test_what_is_not_there_is_neither_searched_nor_taken_for_a_range() -> None:
    assert PASS.narrow is not None and PASS.unfit is not None
    found = PASS.narrow(flux_case(), None)
    assert {kind: domain.choices for kind, domain in found.items()} == {
        "cross": (6,), "temporal": (4,)
    }  # fmt: skip
    assert PASS.unfit(flux_case(), PASS.settings(spatial=1)) == (
        f"{NAME} leaves nothing out at spatial 1; set a range above 1"
    )
    both = flux_case(traits=TRAITS.model_copy(update={"attention": ("spatial", "cross")}))
    assert PASS.unfit(both, PASS.settings(spatial=1)) is None


def test_blocks_without_attention_that_diffusers_knows_are_named() -> None:
    bare = TRAITS.model_copy(update={"attention": (), "block_classes": ("MambaBlock",)})
    (missing,) = PASS.missing(flux_case(traits=bare))
    assert missing == (
        f"{NAME} needs blocks with attention that diffusers knows; MambaBlock have none"
    )


def test_a_range_that_never_comes_to_bear_is_said(bench: Bench) -> None:
    untouched = bench.untouched
    with bench.put({NAME: {"start": 0.0, "stop": 0.05}}) as handle:
        assert torch.equal(bench.draw(), untouched)
        assert handle.complaints() == {NAME: f"{NAME} reused none of 20 forwards at spatial 2"}
