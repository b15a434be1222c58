"""A static mask of steps: found from one run, exact in what it computes, forecast in between."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from planner.case.telemetry import Telemetry
from planner.errors import TrialFailed, UsageError
from planner.hooks.clock import StepClock
from planner.hooks.forecast import History, weights
from planner.hooks.geometry import error_of, errors, gram, masks
from planner.hooks.masks import stretched
from planner.passes import registry
from planner.passes.base import Context
from planner.passes.caching.step_mask import StepMaskSettings, computed_steps, errors_of
from planner.plans.graph import build
from planner.plans.plan import Plan
from planner.run.apply import LeavesCaseWarning, put_on
from tests.passes.driving import Bench, newest_bench

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
        assert handle.stats["step_mask"]["computed_cond"] == 3


def test_the_geometry_is_that_of_every_branch(bench: Bench) -> None:
    (run,), places = bench.telemetry.series("residual"), bench.telemetry.places
    assert set(run) == {"cond", "uncond"} and len(places) == 10
    assert all(a > b for a, b in itertools.pairwise(places))  # noise levels
    for series in run.values():
        found = gram(series)
        assert found.shape == (10, 10) and np.allclose(found, found.T)
        assert np.linalg.eigvalsh(found).min() > -1e-6


@pytest.mark.parametrize("order", [0, 1])
def test_the_error_of_a_mask_is_what_the_search_for_it_adds_up(order: int) -> None:
    walk, places = a_walk(8), [float(one) for one in np.linspace(1, 0.1, 8)]
    of = errors([walk @ walk.T / walk.shape[1]], places, order)
    for mask in ("10101010", "11000101", "10000000"):
        steps = tuple(i for i, one in enumerate(mask) if one == "1")
        assert error_of(of, mask) == pytest.approx(added(walk, places, steps, order))


def test_errors_at_high_noise_count_more_where_that_is_asked_for() -> None:
    walk, places = a_walk(12, seed=3), [float(one) for one in np.linspace(1, 0.05, 12)]
    products = [walk @ walk.T / walk.shape[1]]
    even, early = (masks(errors(products, places, 1, power))[6] for power in (0.0, 3.0))

    def centre(mask: str) -> float:
        return float(np.mean([i for i, one in enumerate(mask) if one == "1"]))

    assert centre(early) < centre(even)


def test_a_forecast_of_the_output_calls_no_denoiser_at_all(bench: Bench) -> None:
    calls: list[int] = []
    hook = bench.pipe.transformer.x_embedder.register_forward_hook(lambda *_: calls.append(1))
    try:
        with bench.put({"step_mask": {"share": 0.5}}):
            bench.draw()
    finally:
        hook.remove()
    assert len(calls) == 2 * 5


def test_an_output_that_is_kept_is_a_coarser_schedule(bench: Bench) -> None:
    """A velocity that stays from one computed step to the next is Euler on those steps alone."""
    mask = "1010010010"
    with bench.put({"step_mask": {"mask": mask, "order": 0}}):
        skipped = bench.draw()
    sigmas = [float(one) for one in bench.pipe.scheduler.sigmas[:10]]
    coarse = [sigma for sigma, one in zip(sigmas, mask, strict=True) if one == "1"]
    plain = bench.draw(num_inference_steps=len(coarse), sigmas=coarse)
    again = [float(one) for one in bench.pipe.scheduler.sigmas[:-1]]
    assert again == pytest.approx(coarse)
    assert torch.allclose(skipped, plain, atol=1e-4)


@pytest.mark.parametrize(("mask", "said"), [
    ("110", "has a mask of 3 steps and this call has 10"),
    ("0111111110", "begins with 1"), ("1111111111", "skips something"), ("11x1111110", "made of 1"),
])  # fmt: skip
def test_a_mask_that_cannot_be_is_refused_in_a_sentence(
    bench: Bench, mask: str, said: str
) -> None:
    try:
        why = build(bench.case).why_not(Plan.of({"step_mask": {"mask": mask}}))
    except UsageError as error:
        why = str(error)
    assert said in str(why)


def test_a_residual_needs_known_blocks_and_an_output_does_not(bench: Bench) -> None:
    traits = bench.case.model.traits.model_copy(update={"skippable": False})
    model = bench.case.model.model_copy(update={"traits": traits})
    graph = build(bench.case.model_copy(update={"model": model}))
    assert graph.why_not(Plan.of({"step_mask": {}})) is None
    why = graph.why_not(Plan.of({"step_mask": {"tensor": "residual"}}))
    assert "forecast the output instead (tensor: output)" in str(why)


def test_only_a_forecast_of_the_output_stands_beside_recorded_forwards() -> None:
    graph = build(newest_bench().case)
    assert graph.why_not(Plan.of({"step_mask": {}, "cuda_graphs": {}})) is None
    why = graph.why_not(Plan.of({"step_mask": {"tensor": "residual"}, "cuda_graphs": {}}))
    assert "would replay what step_mask decided" in str(why)


def test_neighbours_compute_as_many_steps_and_the_nearest_come_first(bench: Bench) -> None:
    settings = StepMaskSettings(share=0.4)
    assert PASS.neighbours is not None
    found = PASS.neighbours(settings, bench.artifact("step_mask"), bench.telemetry)
    masks_found = [str(one["mask"]) for one in found]
    assert masks_found and len(set(masks_found)) == len(masks_found)
    assert {mask.count("1") for mask in masks_found} == {4}
    (of,) = errors_of(bench.telemetry, settings)
    expected = [error_of(of, mask) for mask in masks_found]
    assert expected == sorted(expected)
    for one in found[:2]:
        with bench.put({"step_mask": one}) as handle:
            bench.draw()
            assert handle.stats["step_mask"]["mask_cond"] == one["mask"]


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
    assert inert == "step_mask reused none of 20 forwards at share 0.3"


@pytest.mark.parametrize("order", [0, 1])
def test_the_effect_holds_the_bytes_that_the_residuals_take(
    bench: Bench, order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    real = History.keep

    def keep(history: Any, place: float, added: Any) -> None:
        real(history, place, added)
        tensors = [one for step in history._values for pair in step for one in pair]
        held.append(sum(one.nbytes for one in tensors if one is not None))

    monkeypatch.setattr(History, "keep", keep)
    settings = {"share": 0.5, "order": order, "tensor": "residual"}
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
    assert kept == {"masks": {f"output, order {order}, early 0.5": [mask]}}
    plan = Plan.of({"step_mask": settings})
    with put_on(bench.pipe, plan, bench.case, {"step_mask": kept}):
        assert torch.equal(bench.draw(), expected)


class Known:
    """Reference calls that were recorded already."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def render(self) -> None:
        raise AssertionError("what was recorded need not be run again")

    def telemetry(self) -> Telemetry:
        return self._bench.telemetry


def test_what_was_learned_for_other_settings_is_learned_anew(bench: Bench) -> None:
    odd = StepMaskSettings(early=2.0)
    assert PASS.calibrate is not None
    assert not PASS.serves(bench.artifact("step_mask"), odd) and PASS.learns(odd)
    context = Context(case=bench.case, clock=StepClock())
    assert PASS.serves(PASS.calibrate(bench.pipe, odd, context, Known(bench)), odd)
    assert not PASS.learns(StepMaskSettings(mask="1010101010")), "it says its steps itself"
    tea = registry.get("tea_cache")
    published, fitted = tea.settings(coefficients="published"), tea.settings()
    assert tea.serves({"published": [1.0, 0.0]}, published)
    assert not tea.serves({"published": [1.0, 0.0]}, fitted)
    assert tea.serves(bench.artifact("tea_cache"), fitted)
    assert not tea.serves(bench.artifact("tea_cache"), published)
