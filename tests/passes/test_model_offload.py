"""Components that take turns on the device."""

import pytest
import torch

from planner.passes import registry
from planner.plans.graph import build
from planner.plans.plan import Plan
from tests.passes.driving import Bench, declared_bench
from tests.passes.gpus import heavy_work, on_gpu

PASS = registry.get("model_offload")


def test_the_call_runs_through_accelerates_hooks_and_draws_the_same(bench: Bench) -> None:
    untouched = bench.draw()
    with declared_bench().put({"model_offload": {}}) as handle:
        assert all(hasattr(part, "_hf_hook") for part in (bench.pipe.vae, bench.pipe.transformer))
        assert torch.equal(bench.draw(), untouched)
        assert torch.equal(bench.draw(), untouched)  # diffusers puts its hooks on anew each time
        assert handle.stats["model_offload"] == {"components": 4}
    assert torch.equal(bench.draw(), untouched)


def test_every_component_crosses_the_link_twice_in_its_own_phase() -> None:
    after = PASS.effect(heavy_work(), PASS.settings(), None)
    assert {part.place for part in after.parts} == {"host"}
    assert [phase.transfers for phase in after.phases] == [600, 1000, 0, 100]
    assert not any(phase.overlapped for phase in after.phases)


def test_what_another_pass_has_moved_stays_where_it_is() -> None:
    work = heavy_work()
    streamed = registry.get("group_offload").effect(
        work, registry.settings_of("group_offload", {}), None
    )
    after = PASS.effect(streamed, PASS.settings(), None)
    assert [part.place for part in after.parts] == ["host", "streamed", "host"]


@pytest.mark.parametrize(("other", "said"), [
    ("group_offload", "both own denoiser.place"), ("text_encoder_offload", "group-offloaded"),
])  # fmt: skip
def test_one_way_of_moving_a_component_is_kept(other: str, said: str) -> None:
    why = build(on_gpu()).why_not(Plan.of({"model_offload": {}, other: {}}))
    assert why is not None and said in why


def test_remembered_prompts_are_advised_against_since_they_are_never_found_again() -> None:
    plan = Plan.of({"model_offload": {}, "prompt_embedding_cache": {}})
    graph = build(on_gpu())
    assert graph.why_not(plan) is None
    assert "no text is found again" in graph.advice(plan)[0]


def test_a_pipeline_with_nothing_to_take_turns_with_is_told_so(bench: Bench) -> None:
    (said,) = PASS.missing(bench.case)
    assert said == "model_offload needs a CUDA device; this one is a cpu"
    case = on_gpu()
    alone = case.model_copy(update={"model": case.model.model_copy(update={"components": {}})})
    assert PASS.missing(alone)[0].startswith("model_offload needs parts that take turns")
