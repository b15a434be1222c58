"""How much of a call is reused: what was seen, and what a policy expects."""

from collections.abc import Mapping, Sequence

from planner.case.noun import Noun, Scalar

Interval = tuple[float, float]
"""The least and the most share of its forwards that a pass should reuse in one call."""


class HitRate(Noun):
    """The share of its forwards that a pass reuses, and the interval expected of any one call.

    `value` is the mean over `calls`. `low` and `high` are the least and the most of them, and one
    step of every branch beyond where the pass decides by the images.
    """

    value: float
    low: float
    high: float
    calls: int


def reused(statistics: Mapping[str, Mapping[str, Scalar]]) -> dict[str, float]:
    """Return the share of its forwards that each counting pass reused in a call."""
    rates = ((name, counters.get("hit_rate")) for name, counters in statistics.items())
    return {name: float(rate) for name, rate in rates if isinstance(rate, int | float)}


def by_pass(calls: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, ...]]:
    """Return by pass the shares of all calls, in order; one that counted nothing reused nothing."""
    names = {name: None for call in calls for name in call}
    return {name: tuple(call.get(name, 0.0) for call in calls) for name in names}


def is_outside(rate: float, interval: Interval) -> bool:
    """Tell whether a share lies outside an interval, which is stated to four decimals."""
    return not interval[0] <= round(rate, 4) <= interval[1]


def span(interval: Interval) -> str:
    """Write an interval of shares: 66.0%, or 42.3% to 53.8%."""
    low, high = interval
    return f"{low:.1%}" if low == high else f"{low:.1%} to {high:.1%}"
