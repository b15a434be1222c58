"""A stack that runs at intervals, and a polynomial in between."""

import pytest
import torch

from planner.hooks.forecast import History, weights
from planner.passes import registry
from planner.passes.caching.taylor_seer import TaylorSeerSettings, runs
from planner.run.apply import LeavesCaseWarning
from tests.passes.driving import Bench

PASS = registry.get("taylor_seer")


def test_the_first_steps_run_and_then_every_so_many() -> None:
    settings = TaylorSeerSettings(interval=3, first=2)
    assert [step for step in range(12) if runs(settings, step)] == [0, 1, 4, 7, 10]


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_polynomial_of_its_order_is_forecast_exactly(order: int) -> None:
    history, places = History(order), (1.0, 0.8, 0.5, 0.1)
    for place in places[:-1]:
        history.keep(place, [(torch.full((1, 1, 1), 1 + place**order), None)])
    ((image, _),) = history.at(places[-1])
    assert float(image) == pytest.approx(1 + places[-1] ** order, rel=1e-5)
    assert sum(weights(places[:-1], 0.1, order)) == pytest.approx(1.0)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_what_the_effect_says_is_what_runs(bench: Bench, order: int) -> None:
    settings = {"interval": 2, "order": order, "first": 2}
    with bench.put({"taylor_seer": settings}) as handle:
        image = bench.draw()
        found = handle.stats["taylor_seer"]
    assert found["mask_cond"] == found["mask_uncond"] == "1101010101"
    after = PASS.effect(bench.work, TaylorSeerSettings(**settings), None)
    assert after.computed_forwards == pytest.approx(12) == found["computed"]
    assert torch.isfinite(image).all() and not torch.equal(image, bench.untouched)


def test_a_longer_call_goes_on_at_the_same_interval(bench: Bench) -> None:
    with bench.put({"taylor_seer": {"interval": 5, "first": 1}}) as handle:
        with pytest.warns(LeavesCaseWarning):
            bench.draw(num_inference_steps=12)
        assert handle.stats["taylor_seer"]["mask_cond"] == "100001000010"


def test_an_interval_of_one_is_inert(bench: Bench) -> None:
    with bench.put({"taylor_seer": {"interval": 1}}) as handle:
        assert torch.equal(bench.draw(), bench.untouched)
        assert handle.complaints() == {
            "taylor_seer": "taylor_seer reused none of 20 forwards at interval 1"
        }
