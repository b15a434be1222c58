"""MagCache's rule by its published masks, and what it does on a pipeline."""

import itertools

import pytest
import torch

from planner.errors import TrialFailed
from planner.hooks.masks import stretched
from planner.passes import registry
from planner.passes.caching.mag_cache import MagCacheSettings, mask
from planner.plans.plan import Plan
from planner.run.apply import put_on
from tests.passes.driving import Bench
from tests.passes.watching import Added

PASS = registry.get("mag_cache")
FLUX = (
    1.21094, 1.11719, 1.07812, 1.0625, 1.03906, 1.03125, 1.03906, 1.02344, 1.03125, 1.02344,
    0.98047, 1.01562, 1.00781, 1.0, 1.00781, 1.0, 1.00781, 1.0, 1.0, 0.99609, 0.99609, 0.98047,
    0.98828, 0.96484, 0.95703, 0.93359, 0.89062,
)  # fmt: skip
"""FLUX.1-dev's ratios at 28 steps, as diffusers and the authors publish them."""


@pytest.mark.parametrize(("threshold", "most", "start", "expected"), [
    (0.06, 3, 0.2, "1111110101000100010001001011"), (0.06, 2, 0.2, "1111110101001001001001001011"),
    (0.12, 3, 0.2, "1111110010010001000100010010"),
])  # fmt: skip
def test_the_mask_is_the_published_one(
    threshold: float, most: int, start: float, expected: str
) -> None:
    settings = MagCacheSettings(threshold=threshold, most=most, start=start)
    assert mask(FLUX, settings) == expected


def test_the_mask_is_known_before_the_run_and_is_what_runs(bench: Bench) -> None:
    settings = {"threshold": 0.3, "most": 2, "start": 0.1}
    ratios = bench.artifact("mag_cache")["ratios"]
    with bench.put({"mag_cache": settings}) as handle:
        bench.draw()
        found = handle.stats["mag_cache"]
    for branch in ("cond", "uncond"):
        assert found[f"mask_{branch}"] == mask(ratios[branch], MagCacheSettings(**settings))
    assert found["reused"]


def test_ratios_are_the_mean_over_tokens_of_the_residuals_lengths(bench: Bench) -> None:
    with Added(bench.pipe) as watched:
        bench.draw()
    ratios = bench.artifact("mag_cache")["ratios"]
    assert set(ratios) == {"cond", "uncond"}
    for branch, residuals in watched.branches.items():
        lengths = [one.norm(dim=-1) for one in residuals]
        expected = [float((now / last).mean()) for last, now in itertools.pairwise(lengths)]
        assert ratios[branch] == pytest.approx(expected, rel=1e-4) and len(expected) == 9


def test_a_recorded_call_of_another_length_gives_the_mask_stretched(bench: Bench) -> None:
    settings = MagCacheSettings(threshold=0.3, most=2, start=0.1)
    ((branch, mine), *_) = PASS.masks(settings, bench.telemetry)[0].items()
    longer = bench.work.mapped(lambda phase: phase.model_copy(
        update={"calls": 20 if phase.name == "denoise" else phase.calls}))  # fmt: skip
    after = PASS.effect(longer, settings, bench.telemetry)
    denoise = next(one for one in after.phases if one.branch == branch)
    share = next(op.share for op in denoise.operations if op.block)
    assert share == pytest.approx(stretched(mine, 20).count("1") / 20)


def test_without_a_calibration_it_is_refused_and_nothing_stays(bench: Bench) -> None:
    with pytest.raises(TrialFailed, match="mag_cache has no artifact"):
        put_on(bench.pipe, Plan.of({"mag_cache": {}}), bench.case)
    assert torch.equal(bench.draw(), bench.untouched)


def test_the_effect_is_exact_with_telemetry_and_promises_nothing_without(bench: Bench) -> None:
    settings = MagCacheSettings(threshold=0.3, most=2, start=0.1)
    assert PASS.effect(bench.work, settings, None).phases == bench.work.phases
    (found,) = PASS.masks(settings, bench.telemetry)
    ratios = bench.artifact("mag_cache")["ratios"]
    assert found == {branch: mask(seen, settings) for branch, seen in ratios.items()}
    computed = sum(one.count("1") for one in found.values())
    after = PASS.effect(bench.work, settings, bench.telemetry)
    assert after.computed_forwards == pytest.approx(computed)
