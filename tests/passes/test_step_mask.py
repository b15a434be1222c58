"""A static mask of steps: found from one run, exact in what it computes, forecast in between."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from planner.errors import TrialFailed
from planner.hooks.forecast import History, weights
from planner.hooks.geometry import Residuals, errors, masks
from planner.hooks.skipping import stretched
from planner.passes import registry
from planner.passes.caching.step_mask import StepMaskSettings, computed_steps
from planner.plans.plan import Plan
from planner.run.apply import LeavesCaseWarning, put_on
from tests.passes.driving import Bench

PASS = registry.get("step_mask")


def a_walk(steps: int, seed: int = 0) -> Any:
    return np.cumsum(np.random.default_rng(seed).normal(size=(steps, 20)), 0)


def added(walk: Any, places: list[float], steps: tuple[int, ...], order: int) -> float:
    """The error of computing these steps alone, from the residuals themselves."""
    widths, total = np.abs(np.diff([*places, 0.0])), 0.0
    for step in range(len(places)):
        known = [one for one in steps if one < step][-(order + 1) :]
        if step not in steps:
            parts = weights([places[one] for one in known], places[step], order)
            guess = sum(part * walk[one] for part, one in zip(parts, known, strict=True))
            total += np.sqrt(((walk[step] - guess) ** 2).mean()) * widths[step]
    return float(total)


@pytest.mark.parametrize("order", [0, 1])
def test_the_mask_is_the_best_of_all_masks_with_as_many_steps(order: int) -> None:
    walk, places = a_walk(8), [float(one) for one in np.linspace(1, 0.1, 8) ** 1.3]
    found = masks(errors([walk @ walk.T / walk.shape[1]], places, order))
    for count in range(1, 9):
        mine = tuple(i for i, one in enumerate(found[count]) if one == "1")
        every = ((0, *rest) for rest in itertools.combinations(range(1, 8), count - 1))
        best = min(added(walk, places, steps, order) for steps in every)
        assert len(mine) == count and mine[0] == 0
        assert added(walk, places, mine, order) == pytest.approx(best, abs=1e-9)


def test_a_straight_line_is_forecast_exactly_by_order_one() -> None:
    history = History(order=1)
    for place in (1.0, 0.9, 0.7):
        image = torch.full((1, 2, 3), 2 * place)
        history.keep(place, [(image, None), (image, -image)])
    (first, text), (_, second) = history.at(0.4)
    assert text is None and torch.allclose(first, torch.full((1, 2, 3), 0.8))
    assert torch.allclose(second, torch.full((1, 2, 3), -0.8))
    assert weights([0.3], 0.1, 1) == (1.0,)
    assert sum(weights([1.0, 0.4], 0.1, 1)) == pytest.approx(1.0)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_as_many_steps_are_computed_as_the_settings_say(
    bench: Bench, share: float, order: int
) -> None:
    settings = {"share": share, "order": order}
    wanted = computed_steps(StepMaskSettings(**settings), 10)
    with bench.put({"step_mask": settings}) as handle:
        image = bench.draw()
        found = handle.stats["step_mask"]
    assert found["computed_cond"] == found["computed_uncond"] == wanted
    assert found["mask_cond"] == found["mask_uncond"] and str(found["mask_cond"])[0] == "1"
    assert not torch.equal(image, bench.untouched)
    work = PASS.effect(bench.work, StepMaskSettings(**settings), None)
    assert work.computed_forwards == pytest.approx(2 * wanted)


def test_one_step_a_branch_is_skipped_at_the_least(bench: Bench) -> None:
    with bench.put({"step_mask": {"share": 1.0}}) as handle:
        nearly = bench.draw()
        assert handle.stats["step_mask"]["reused"] == 2
    assert torch.allclose(nearly, bench.untouched, atol=0.2)


def test_another_number_of_steps_gets_the_mask_stretched(bench: Bench) -> None:
    assert stretched("1010", 4) == "1010" and stretched("10", 4) == "1100"
    assert stretched("1100", 2) == "10" and stretched("10", 1) == "1"
    with bench.put({"step_mask": {}}) as handle:
        with pytest.warns(LeavesCaseWarning):
            bench.draw(num_inference_steps=20)
        assert len(str(handle.stats["step_mask"]["mask_cond"])) == 20
        bench.draw()
        assert handle.stats["step_mask"]["computed_cond"] == 5


def test_the_geometry_is_that_of_the_residuals_of_every_branch(bench: Bench) -> None:
    with bench.framed() as (clock, render), Residuals(bench.pipe, clock) as seen:
        render()
        grams, places = seen.grams, seen.places
    assert len(grams) == 2 and len(places) == 10
    assert all(a > b for a, b in itertools.pairwise(places))  # noise levels
    for gram in grams:
        assert gram.shape == (10, 10) and np.allclose(gram, gram.T)
        assert np.linalg.eigvalsh(gram).min() > -1e-6


def test_without_a_calibration_it_is_refused(bench: Bench) -> None:
    with pytest.raises(TrialFailed, match="step_mask has no artifact"):
        put_on(bench.pipe, Plan.of({"step_mask": {}}), bench.case)
    assert torch.equal(bench.draw(), bench.untouched)


def test_few_steps_and_inert_masks_are_said(bench: Bench) -> None:
    few = bench.case.workload.model_copy(update={"call": {"num_inference_steps": 8}})
    (said,) = PASS.missing(bench.case.model_copy(update={"workload": few}))
    assert said == "step_mask needs at least 9 steps; this call has 8"
    assert PASS.observe is not None
    inert = PASS.observe(StepMaskSettings(), {"computed": 20, "reused": 0}, bench.case.workload)
    assert inert == "step_mask reused none of 20 forwards at share 0.5"


@pytest.mark.parametrize("order", [0, 1])
def test_the_effect_holds_the_bytes_that_the_residuals_take(
    bench: Bench, order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    real = History.keep

    def keep(history: Any, place: float, added: Any) -> None:
        real(history, place, added)
        tensors = [one for step in history._added for pair in step for one in pair]
        held.append(sum(one.nbytes for one in tensors if one is not None))

    monkeypatch.setattr(History, "keep", keep)
    settings = {"share": 0.5, "order": order}
    with bench.put({"step_mask": settings}):
        bench.draw()
    after = PASS.effect(bench.work, StepMaskSettings(**settings), None)
    # Two branches; the attention whose traffic tells the size reads a little else besides.
    assert after.kept == pytest.approx(2 * max(held), rel=0.02)


@pytest.mark.parametrize("order", [0, 1])
def test_a_policy_keeps_the_one_mask_that_its_settings_need(bench: Bench, order: int) -> None:
    settings = {"share": 0.4, "order": order}
    with bench.put({"step_mask": settings}) as handle:
        expected = bench.draw()
        mask = handle.stats["step_mask"]["mask_cond"]
    assert PASS.needed is not None
    kept = PASS.needed(bench.artifact("step_mask"), StepMaskSettings(**settings))
    assert kept == {"masks": {str(order): [mask]}}
    plan = Plan.of({"step_mask": settings})
    with put_on(bench.pipe, plan, bench.case, {"step_mask": kept}):
        assert torch.equal(bench.draw(), expected)
