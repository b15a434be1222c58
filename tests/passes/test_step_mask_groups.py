"""A static mask for each group of blocks: exact in what it computes, shared out by need."""

from typing import Any

import numpy as np
import pytest
import torch

from planner.errors import UsageError
from planner.hooks.geometry import best_masks, error_of, errors, masks
from planner.passes import registry
from planner.passes.caching.step_mask import StepMaskSettings
from planner.plans.graph import build
from planner.plans.plan import Plan
from planner.run.apply import put_on
from tests.passes.driving import Bench
from tests.passes.test_step_mask import a_walk

PASS = registry.get("step_mask")

GROUPED = "1010101010|1000100010|1001001001|1111111110"
"""A mask for each of the four blocks of the bench's denoiser, every one a group."""


def test_groups_of_blocks_are_computed_each_at_steps_of_its_own(bench: Bench) -> None:
    ran: list[int] = []
    net = bench.pipe.transformer
    blocks = [*net.transformer_blocks, *net.single_transformer_blocks]
    hooks = [next(one for one in block.modules() if isinstance(one, torch.nn.Linear))
             .register_forward_hook(lambda *_, place=place: ran.append(place))
             for place, block in enumerate(blocks)]  # fmt: skip
    try:
        with bench.put({"step_mask": {"tensor": "groups", "mask": GROUPED}}) as handle:
            ran.clear()  # what a calibration ran
            image, found = bench.draw(), handle.stats["step_mask"]
    finally:
        for hook in hooks:
            hook.remove()
    parts = GROUPED.split("|")
    for branch in ("cond", "uncond"):
        assert [found[f"mask_{branch}.{index + 1}"] for index in range(4)] == parts
    counts = [part.count("1") for part in parts]
    assert [ran.count(place) for place in range(4)] == [2 * one for one in counts]
    assert found["hit_rate"] == pytest.approx(1 - sum(counts) / 40)
    assert not torch.equal(image, bench.untouched)


def test_what_groups_compute_is_what_their_effect_says(bench: Bench) -> None:
    settings = StepMaskSettings(tensor="groups", mask=GROUPED)
    work = PASS.effect(bench.work, settings, bench.telemetry)
    shares = {op.path.split(".")[0] + op.path.split(".")[1]: op.share
              for phase in work.phases if phase.name == "denoise"
              for op in phase.operations if op.block}  # fmt: skip
    assert list(shares.values()) == [0.5, 0.3, 0.4, 0.9]
    blind = PASS.effect(bench.work, settings, None)
    one = PASS.effect(bench.work, StepMaskSettings(tensor="residual", order=0), None)
    assert blind.kept == work.kept == 2 * 2 * one.kept, "twice the residuals, twice the order"


def test_steps_go_to_the_groups_that_need_them() -> None:
    """Of two groups, one that hardly moves gets fewer steps than one that walks."""
    places = [float(one) for one in np.linspace(1, 0.1, 12)]
    walk, still = a_walk(12), a_walk(12, seed=1) * 0.05
    of = [errors([one @ one.T / one.shape[1]], places, 0) for one in (walk, still)]
    found = best_masks(of)
    moving, resting = found[5].split("|")
    assert moving.count("1") + resting.count("1") == 10 and moving.count("1") > 5
    every = [(error_of(of[0], masks(of[0])[n]) + error_of(of[1], masks(of[1])[10 - n]))
             for n in range(1, 10)]  # fmt: skip
    mine = error_of(of[0], moving) + error_of(of[1], resting)
    assert mine == pytest.approx(min(every))


def test_a_calibration_knows_masks_of_groups_and_a_policy_keeps_one(bench: Bench) -> None:
    settings = StepMaskSettings(tensor="groups", share=0.5)
    assert PASS.needed is not None and PASS.neighbours is not None
    kept = PASS.needed(bench.artifact("step_mask"), settings)
    ((mask,),) = kept["masks"].values()
    assert len(mask.split("|")) == 4 and mask.count("1") == 4 * 5
    near = PASS.neighbours(settings, kept, bench.telemetry)
    assert near and all(str(one["mask"]).count("1") == 4 * 5 for one in near)
    with bench.put({"step_mask": near[0]}) as handle:
        bench.draw()
        found = handle.stats["step_mask"]
    assert "|".join(str(found[f"mask_cond.{one}"]) for one in range(1, 5)) == near[0]["mask"]


@pytest.mark.parametrize(("settings", "said"), [
    ({"mask": GROUPED}, "has 4 masks and forecasts the output; give one mask"),
    ({"mask": "110|10", "tensor": "groups"}, "alike long"),
    ({"mask": "110|101", "tensor": "groups"}, "has a mask of 3 steps"),
])  # fmt: skip
def test_masks_of_groups_that_cannot_be_are_refused(
    bench: Bench, settings: dict[str, Any], said: str
) -> None:
    try:
        why = build(bench.case).why_not(Plan.of({"step_mask": settings}))
    except UsageError as error:
        why = str(error)
    assert said in str(why)


def test_as_many_masks_as_groups_are_needed(bench: Bench) -> None:
    plan = Plan.of({"step_mask": {"tensor": "groups", "mask": "1010101010|1000100010"}})
    with pytest.raises(UsageError, match="2 masks were given for 4 groups"):
        put_on(bench.pipe, plan, bench.case)
    assert torch.equal(bench.draw(), bench.untouched)
