"""Guidance in a stretch of the schedule."""

from typing import Any

import pytest
import torch

from planner.passes import registry
from planner.passes.sampling.guidance_interval import GuidanceIntervalSettings, guided
from tests.passes.driving import Bench, Executed
from tests.passes.whole import Around

INTERVAL = registry.get("guidance_interval")


def test_the_whole_schedule_draws_the_untouched_image(bench: Bench) -> None:
    with bench.put({"guidance_interval": {"start": 0.0, "stop": 1.0}}) as handle:
        assert torch.equal(bench.draw(), bench.untouched)
        assert handle.stats["guidance_interval"]["reused"] == 0
        said = handle.complaints()["guidance_interval"]
        assert said == "guidance_interval left out no unconditional forward of 10; 0 expected"


def test_no_step_at_all_draws_what_the_pipeline_draws_without_guidance(bench: Bench) -> None:
    unguided = bench.draw(true_cfg_scale=1.0)
    with bench.put({"guidance_interval": {"start": 0.5, "stop": 0.5}}):
        assert torch.equal(bench.draw(), unguided)


def test_only_guided_steps_run_the_unconditional_forward(bench: Bench) -> None:
    plan = {"guidance_interval": {"start": 0.2, "stop": 0.7}}
    with bench.put(plan) as handle, Executed(bench.pipe) as executed:
        bench.draw()
        stats = handle.stats["guidance_interval"]
    assert executed.forwards == 15
    assert stats["mask_cond"] == "1111111111" and stats["mask_uncond"] == "0011111000"


def test_the_stretch_follows_the_steps_of_the_plan(bench: Bench) -> None:
    plan = {"guidance_interval": {"stop": 0.8}, "steps": {"num_inference_steps": 5}}
    with bench.put(plan) as handle:
        bench.draw()
        assert handle.stats["guidance_interval"]["mask_uncond"] == "11110"


@pytest.mark.parametrize(
    ("start", "stop", "total", "count"),
    [(0.0, 1.0, 50, 50), (0.3, 0.7, 10, 4), (0.1, 0.3, 10, 2), (0.0, 0.8, 7, 6), (0.5, 0.3, 9, 0)],
)
def test_shares_are_rounded_towards_the_step_that_begins_inside(
    start: float, stop: float, total: int, count: int
) -> None:
    settings = GuidanceIntervalSettings(start=start, stop=stop)
    assert sum(guided(settings, step, total) for step in range(total)) == count


def test_an_interval_that_leaves_out_nothing_it_should_is_reported(bench: Bench) -> None:
    assert INTERVAL.observe is not None
    counters = {"computed_cond": 10, "reused_uncond": 0}
    said = INTERVAL.observe(GuidanceIntervalSettings(stop=0.5), counters, bench.case.workload)
    assert said == "guidance_interval left out no unconditional forward of 10; 5 expected"


@pytest.mark.parametrize("cache", [
    {"step_mask": {"mask": "1010100101", "order": 1}},
    {"step_mask": {"mask": "1010100101", "order": 1, "tensor": "residual"}},
    {"sea_cache": {"threshold": 100.0, "most": 3, "start": 0.0}},
    {"easy_cache": {"threshold": 100.0, "start": 0.0}},
])  # fmt: skip
def test_around_a_cache_no_step_outside_is_guided_and_none_is_forecast_from_one_that_was(
    bench: Bench, cache: dict[str, dict[str, Any]]
) -> None:
    """A cache around the interval would keep its answers as unconditional outputs."""
    plan = {"guidance_interval": {"start": 0.0, "stop": 0.5}} | cache
    with bench.put(plan) as handle, Around(bench.pipe.transformer) as seen:
        bench.draw()
        (name,), stats = cache, handle.stats
    assert stats[name]["reused_cond"] and len(str(stats[name]["mask_uncond"])) == 5
    pairs = zip(seen.outputs[0::2], seen.outputs[1::2], strict=True)
    alike = [torch.equal(cond, uncond) for cond, uncond in pairs]
    assert alike == [False] * 5 + [True] * 5
