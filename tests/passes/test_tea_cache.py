"""TeaCache: the rule, the calibration, and what a reused step really is."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from planner.errors import TrialFailed
from planner.hooks.clock import StepClock
from planner.hooks.curve import Curve
from planner.passes import registry
from planner.passes.base import Context
from planner.passes.caching.tea_cache import TeaCacheSettings, masks, points
from planner.plans.plan import Plan
from planner.run.apply import put_on
from planner.trials.reference import ReferenceCalls
from tests.passes.driving import Bench, Executed
from tests.passes.watching import Added

PASS = registry.get("tea_cache")

def test_a_reused_step_adds_what_its_own_branch_last_added(bench: Bench) -> None:
    with bench.put({"tea_cache": {"threshold": 0.5, "start": 0.0}}) as handle:
        with Added(bench.pipe) as watched:
            bench.draw()
        stats = handle.stats["tea_cache"]
    for name, added in watched.branches.items():
        mask = str(stats[f"mask_{name}"])
        assert mask[0] == mask[-1] == "1" and mask.count("0") >= 2
        for step in range(1, 10):
            same = torch.allclose(added[step], added[step - 1], atol=1e-5)
            assert same == (mask[step] == "0"), f"{name} at step {step}"


def test_no_block_runs_in_a_reused_step(bench: Bench) -> None:
    ran = 0

    def count(*_: Any) -> None:
        nonlocal ran
        ran += 1

    hook = bench.pipe.transformer.transformer_blocks[0].attn.register_forward_hook(count)
    plan = {"tea_cache": {"threshold": 0.5, "start": 0.0}}
    with bench.put(plan) as handle, Executed(bench.pipe) as executed:
        bench.draw()
        stats = handle.stats["tea_cache"]
    hook.remove()
    assert ran == executed.stacks == stats["computed"] == 20 - int(stats["reused"] or 0)
    assert stats["hit_rate"] == pytest.approx(int(stats["reused"] or 0) / 20)


def test_threshold_zero_computes_every_step_and_is_reported_as_inert(bench: Bench) -> None:
    with bench.put({"tea_cache": {"threshold": 0.0}}) as handle:
        assert torch.equal(bench.draw(), bench.untouched)
        assert handle.complaints() == {
            "tea_cache": "tea_cache reused none of 20 forwards at threshold 0"
        }


def test_steps_before_start_and_the_last_are_pinned(bench: Bench) -> None:
    with bench.put({"tea_cache": {"threshold": 100.0, "start": 0.4}}) as handle:
        bench.draw()
        assert handle.stats["tea_cache"]["mask_cond"] == "1111000001"


def test_a_branch_that_guidance_leaves_out_is_not_counted(bench: Bench) -> None:
    plan = {
        "tea_cache": {"threshold": 0.5, "start": 0.0},
        "guidance_interval": {"start": 0.3, "stop": 0.7},
    }
    with bench.put(plan) as handle, Executed(bench.pipe) as executed:
        bench.draw()
        stats = handle.stats["tea_cache"]
    assert str(stats["mask_uncond"]).startswith("---1") and len(str(stats["mask_uncond"])) == 7
    assert executed.forwards == 14 and executed.stacks == stats["computed"]


def test_without_an_artifact_it_says_to_calibrate(bench: Bench) -> None:
    with pytest.raises(TrialFailed, match="calibrate it on this pipeline first") as caught:
        put_on(bench.pipe, Plan.of({"tea_cache": {}}), bench.case)
    assert caught.value.stage == "apply"


def test_calibration_gives_plain_numbers_that_make_the_same_curve(bench: Bench) -> None:
    artifact = bench.artifact("tea_cache")
    again = json.loads(json.dumps(artifact, allow_nan=False))
    assert again == artifact
    low, high = artifact["range"]
    curve, same = Curve.of(artifact), Curve.of(again)
    values = [curve(low + (high - low) * part / 10) for part in range(11)]
    assert values == sorted(values) and values[0] >= 0
    assert values == [same(low + (high - low) * part / 10) for part in range(11)]
    assert len(artifact["coefficients"]) <= 5 and artifact["points"] == 18
    assert set(artifact) == {"coefficients", "range", "r2", "points"} and artifact["r2"] <= 1.0


def test_the_curve_is_fitted_to_both_branches_changes(bench: Bench) -> None:
    seen = bench.telemetry.runs[0]
    indicator, residual = points(bench.telemetry)
    assert indicator[9:] == list(seen["uncond"]["tea_cache"].changes())
    assert residual[:9] == list(seen["cond"]["residual"].changes())


def test_a_call_too_short_to_learn_from_fails_the_calibration(bench: Bench) -> None:
    assert PASS.calibrate is not None
    short = bench.telemetry.at(2)
    alone = short.model_copy(update={"runs": ({"cond": short.runs[0]["cond"]},)})
    with bench.framed() as (clock, _):
        for memo, said in (({"": alone}, "tea_cache saw 1 changes"), ({}, "showed 1 steps")):
            calls = ReferenceCalls(bench.pipe, clock, one_step(bench, clock), bench.case, memo, "")
            with pytest.raises(TrialFailed, match=said) as caught:
                PASS.calibrate(bench.pipe, PASS.settings(), Context(bench.case, clock), calls)
            assert caught.value.stage == "calibrate" and "call of at least" in caught.value.way_out


def one_step(bench: Bench, clock: StepClock) -> Callable[[], None]:
    def render() -> None:
        with clock.call():
            bench.draw(num_inference_steps=1)

    return render


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.6])
def test_the_simulated_masks_are_those_of_the_run(bench: Bench, threshold: float) -> None:
    settings = TeaCacheSettings(threshold=threshold)
    with bench.put({"tea_cache": {"threshold": threshold}}) as handle:
        bench.draw()
        stats = handle.stats["tea_cache"]
    (found,) = masks(settings, bench.telemetry)
    assert found == {branch: stats[f"mask_{branch}"] for branch in ("cond", "uncond")}
