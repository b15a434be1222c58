"""Holds what passes reused in a call against what a policy expects of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from planner.case.hit_rate import Interval, is_outside, reused, span
from planner.errors import PolicyDoesNotFit
from planner.passes.base import Statistics

_WAY_OUT = "check scheduler, steps and adapters (LoRA) against the policy's case, or tune again"


class UnexpectedReuseWarning(UserWarning):
    """A pass reused more, or less, of a call than of any call behind its policy."""


class Departure(NamedTuple):
    """A pass outside its interval, in a sentence; `news` where that was not said before."""

    said: str
    news: bool


class Expected:
    """The share of its forwards that each pass should reuse, and what was said of others.

    A departure is news the first time, for each pass and direction, and again where it is at
    least twice as large as what was said last: one that grows does not go on in silence, and a
    lasting one is not said at every call.
    """

    def __init__(self, intervals: Mapping[str, Interval], *, strict: bool = False) -> None:
        self._intervals, self._strict = dict(intervals), strict
        self._said: dict[tuple[str, bool], float] = {}

    def departures(self, statistics: Mapping[str, Statistics]) -> list[Departure]:
        """Return every pass outside its interval; one that counted nothing reused nothing."""
        rates = reused(statistics)
        return [
            self._departure(name, rates.get(name, 0.0), interval)
            for name, interval in self._intervals.items()
            if is_outside(rates.get(name, 0.0), interval)
        ]

    def say(self, found: Sequence[Departure]) -> None:
        """Warn of every departure that is news, in the name of the pipeline's caller.

        Raises `PolicyDoesNotFit` instead, and of every one, where it is `strict`.
        """
        if found and self._strict:
            said = tuple(one.said for one in found)
            raise PolicyDoesNotFit("; ".join(said), value=said, way_out=_WAY_OUT)
        for one in found:
            if one.news:
                warnings.warn(f"{one.said}: {_WAY_OUT}", UnexpectedReuseWarning, stacklevel=4)

    def _departure(self, name: str, rate: float, interval: Interval) -> Departure:
        low, high = interval
        side, beyond = (name, rate > high), max(low - rate, rate - high)
        news = beyond >= 2 * self._said.get(side, 0.0)
        if news:
            self._said[side] = beyond
        said = f"{name} reused {rate:.1%} of its forwards; the policy expects {span(interval)}"
        return Departure(said, news)


def forget(counters: Iterable[Statistics]) -> None:
    """Clear what was counted in the last call: a hook that is gone would else repeat it."""
    for statistics in counters:
        if "hit_rate" in statistics:
            statistics.clear()
