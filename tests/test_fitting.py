"""The fit's derivatives are those of its errors, and pairs teach only what they differ in."""

from pathlib import Path

import numpy as np
import pytest

from planner.prediction.fitting import (
    Prices,
    fit,
    fit_margin,
    gather,
    memory_errors,
    ratios,
    techniques,
)
from planner.prediction.fitting import _FirstStage as FirstStage
from planner.prediction.left_out import GROUPS, left_out_memory
from planner.prediction.replay import Sample
from planner.prediction.speeds import Constants, margin
from tests.test_published import rows


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """A few rows of one small model on three devices."""
    found, skipped = gather(rows(
        tmp_path, {}, {"id": "b", "gpu": "T4", "latency_s": "3"},
        {"id": "c", "gpu": "H100-SXM", "compile": "y", "latency_s": "0.4", "baseline_id": "d"},
        {"id": "d", "gpu": "H100-SXM", "latency_s": "0.6", "peak_vram_gb": "2.7"},
        {"id": "e", "gpu": "H100-SXM", "latency_s": "0.3", "cache": "MagCache",
         "baseline_id": "d"},
        {"id": "f", "gpu": "H100-SXM", "latency_s": "0.1", "cache": "PAB", "steps": "5",
         "baseline_id": "d"},
    ))  # fmt: skip
    assert not skipped
    return found


def test_derivatives_are_those_of_the_errors(samples: list[Sample]) -> None:
    prices = Prices([one for one in samples if one.row.cache == "none"])
    problem = FirstStage(prices, np.array([True, False, True, True]))
    x = problem.begun(None) + 0.05
    slopes = problem.slopes(x)
    for place in range(len(x)):
        ahead, behind = x.copy(), x.copy()
        ahead[place] += 1e-4
        behind[place] -= 1e-4
        central = (problem.errors(ahead) - problem.errors(behind)) / 2e-4
        assert slopes[:, place] == pytest.approx(central, rel=1e-2, abs=1e-2)


def test_a_near_fit_to_begin_with_leads_to_the_same_constants(samples: list[Sample]) -> None:
    prices = Prices([one for one in samples if one.row.cache == "none"])
    whole = fit(prices)
    use = np.array([True, True, True, False])
    cold, warm = fit(prices, use), fit(prices, use, whole)
    assert prices.logs(warm) == pytest.approx(prices.logs(cold), abs=1e-3)


def test_a_cache_is_learned_from_calls_of_as_many_steps(samples: list[Sample]) -> None:
    prices = Prices(samples)
    known = techniques(prices, ratios(samples), Constants())
    assert list(known.caches) == ["MagCache"] and 0 < known.caches["MagCache"] < 1


def test_memory_that_is_left_out_teaches_nothing(samples: list[Sample]) -> None:
    seen = [one for one in samples if one.row.memory]
    inside = memory_errors(seen, margin(fit_margin(seen, Constants()), "old"))
    outside = left_out_memory(samples, Constants(), GROUPS["devices"])
    # What torch allocated rests on no constant, so that leaving rows out changes nothing.
    assert outside == pytest.approx(inside)
