"""Bounds hold as often as they say."""

import math

import numpy as np
import pytest

from planner.errors import UsageError
from planner.measure.statistics import (
    mean_upper,
    median,
    median_upper,
    quantile,
    share_lower,
)


def test_the_bound_of_a_median_is_the_order_statistic_of_the_binomial() -> None:
    ten = [float(i) for i in range(1, 11)]
    # P(Binomial(10, 1/2) <= 8) = 0.9893, P(<= 7) = 0.9453: the ninth for 95 %, the last for 99 %.
    assert median_upper(ten, 0.95) == 9.0 and median_upper(ten, 0.99) == 10.0
    assert median_upper(ten[:4], 0.95) == math.inf and median_upper(ten[:5], 0.95) == 5.0
    assert median_upper([], 0.95) == math.inf


def test_the_bound_of_a_median_covers_whatever_the_distribution() -> None:
    rng = np.random.default_rng(7)
    for draw, truth in ((rng.exponential, math.log(2)), (rng.standard_cauchy, 0.0)):
        covered = [median_upper(draw(size=11), 0.95) >= truth for _ in range(400)]
        assert np.mean(covered) >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 400)


def betas(rng: np.random.Generator, variation: float, n: int) -> np.ndarray:
    """LPIPS-like draws: mean 0.08 and a right tail."""
    k = 0.08 * 0.92 / (variation * 0.08) ** 2 - 1
    return rng.beta(0.08 * k, 0.92 * k, n)


def plain_t(values: np.ndarray, confidence: float) -> float:
    from scipy.stats import t

    spread = values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() + t.ppf(confidence, len(values) - 1) * spread)


@pytest.mark.parametrize("confidence", [0.95, 1 - 0.05 / 6])
def test_the_bound_of_a_mean_covers_heavy_tails_where_t_does_not(confidence: float) -> None:
    rng = np.random.default_rng(11)
    sets = [betas(rng, 1.0, 32) for _ in range(3000)]
    missed = np.mean([mean_upper(list(x), confidence) < 0.08 for x in sets])
    missed_by_t = np.mean([plain_t(x, confidence) < 0.08 for x in sets])
    assert missed <= 1.35 * (1 - confidence) < missed_by_t


def test_the_slack_of_a_mean_is_what_a_cap_of_a_tenth_can_afford() -> None:
    rng = np.random.default_rng(3)
    slack = np.mean([mean_upper(list(betas(rng, 0.6, 64)), 0.95) - 0.08 for _ in range(400)])
    assert 0.008 < slack < 0.014


def test_the_bound_of_a_mean_grows_with_a_right_tail_and_never_falls_below_t() -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        right = betas(rng, 0.8, 16)
        for values in (right, 1 - right):
            assert mean_upper(list(values), 0.95) >= plain_t(values, 0.95) - 1e-12


def test_a_mean_of_too_few_values_has_no_bound_and_of_equal_ones_needs_none() -> None:
    assert mean_upper([0.1, 0.2], 0.95) == math.inf
    assert mean_upper([0.5, 0.5, 0.5], 0.95) == 0.5


def test_the_bound_of_a_mean_stays_finite_and_above_the_mean_under_one_wild_value() -> None:
    bounds = [mean_upper([0.01] * 31 + [wild], 0.99) for wild in (0.1, 1.0, 10.0)]
    assert bounds == sorted(bounds) and all(map(math.isfinite, bounds))


def test_the_bound_of_a_share_is_clopper_and_pearsons() -> None:
    assert share_lower(59, 59, 0.95) >= 0.95 > share_lower(58, 58, 0.95)
    assert share_lower(28, 29, 0.95) < 0.90 <= share_lower(45, 46, 0.95)
    assert share_lower(0, 10, 0.95) == 0.0
    assert share_lower(10, 10, 0.95) == pytest.approx(0.05**0.1)


def test_quantiles_interpolate_as_numpys_do() -> None:
    values = [3.0, 1.0, 4.0, 1.5, 9.0]
    for q in (0.0, 0.1, 0.5, 0.9, 1.0):
        assert quantile(values, q) == pytest.approx(float(np.quantile(values, q)))
    assert median([4.0, 1.0]) == 2.5


@pytest.mark.parametrize(
    ("ask", "value"),
    [(lambda: median_upper([1.0], 1.0), 1.0), (lambda: share_lower(3, 2, 0.9), 3),
     (lambda: quantile([], 0.5), 0.5), (lambda: quantile([1.0], 2), 2)],
)  # fmt: skip
def test_questions_without_an_answer_are_refused(ask: object, value: object) -> None:
    with pytest.raises(UsageError) as caught:
        ask()  # type: ignore[operator]
    assert caught.value.value == value and caught.value.way_out.startswith("give")
