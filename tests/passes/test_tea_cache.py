"""TeaCache: the rule, the calibration, and what a reused step really is."""

import json
from typing import Any

import pytest
import torch

from planner.errors import TrialFailed
from planner.hooks.clock import StepClock
from planner.hooks.curve import Curve
from planner.passes import registry
from planner.passes.base import Context
from planner.passes.caching.tea_cache import TeaCacheSettings, simulate
from planner.plans.plan import Plan
from planner.run.apply import put_on
from tests.passes.driving import Bench, Executed

PASS = registry.get("tea_cache")
LINE = Curve([1.0, 0.0], 0.0, 1.0)


class Added:
    """Keeps, per forward, what the block stack added to the image tokens."""

    def __init__(self, pipe: Any) -> None:
        self.added: list[torch.Tensor] = []
        denoiser = pipe.transformer
        self._hooks = [
            denoiser.x_embedder.register_forward_hook(self._before),
            denoiser.norm_out.register_forward_pre_hook(self._after),
        ]

    def _before(self, module: Any, args: Any, output: torch.Tensor) -> None:
        self._input = output.clone()

    def _after(self, module: Any, args: Any) -> None:
        self.added.append(args[0] - self._input)

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()


def test_a_reused_step_adds_what_its_own_branch_last_added(bench: Bench) -> None:
    with bench.put({"tea_cache": {"threshold": 0.5, "start": 0.0}}) as handle:
        watched = Added(bench.pipe)
        bench.draw()
        watched.stop()
        stats = handle.stats["tea_cache"]
    for branch, name in enumerate(("cond", "uncond")):
        mask, added = str(stats[f"mask_{name}"]), watched.added[branch::2]
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


def test_the_rule_gathers_change_until_the_threshold_and_starts_again() -> None:
    changes = (0.1, 0.1, 0.1, 0.25, 0.05, 0.1, 0.1, 0.3, 0.1)
    settings = TeaCacheSettings(threshold=0.25, start=0.0)
    #  gathered:  -  .1 .2 .3 .25 .05 .15 .25 .3  pinned
    assert simulate(settings, LINE, changes, 10) == "1001100111"


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
    assert set(artifact["indicator"]) == {"cond", "uncond"}
    assert all(len(artifact[key]["cond"]) == 9 for key in ("indicator", "residual"))
    assert artifact["r2"] <= 1.0


def test_a_call_too_short_to_learn_from_fails_the_calibration(bench: Bench) -> None:
    assert PASS.calibrate is not None
    clock = StepClock()
    with pytest.raises(TrialFailed, match="saw 0 changes") as caught:
        PASS.calibrate(bench.pipe, PASS.settings(), Context(bench.case, clock), lambda: None)
    assert caught.value.stage == "calibrate"


def test_the_simulated_masks_are_those_of_the_run(bench: Bench) -> None:
    curve = Curve.of(bench.artifact("tea_cache"))
    settings = TeaCacheSettings(threshold=0.3)
    with bench.put({"tea_cache": {"threshold": 0.3}}) as handle:
        bench.draw()
        stats = handle.stats["tea_cache"]
    for branch, (indicator, _) in bench.telemetry.branches.items():
        assert simulate(settings, curve, indicator, 10) == stats[f"mask_{branch}"]


def test_thresholds_searched_here_reach_from_some_reuse_to_three_computed_steps(
    bench: Bench,
) -> None:
    assert PASS.narrow is not None
    domain = PASS.narrow(bench.case, bench.telemetry)["threshold"]
    curve = Curve.of(bench.artifact("tea_cache"))
    indicator = bench.telemetry.branches["cond"][0]
    assert domain.low is not None and domain.high is not None
    mild = simulate(TeaCacheSettings(threshold=domain.low * 1.3, start=0.0), curve, indicator, 10)
    bold = simulate(TeaCacheSettings(threshold=domain.high, start=0.0), curve, indicator, 10)
    assert 0 < mild.count("0") <= 5 and 3 <= bold.count("1") <= 4
