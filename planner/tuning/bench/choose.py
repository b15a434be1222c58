"""Which settings are looked at next, from what was measured: pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

from planner.case.noun import Noun, Scalar
from planner.passes.base import Domain
from planner.tuning.bench.knobs import between, place

AIM = 0.75
"""Share of a level that the search aims at: a bound on unseen prompts lies above the mean."""

ROOM = 0.85
"""Share of a level that a bound must reach for a setting to count as bold enough."""


class Point(Noun):
    """A setting's mean LPIPS and its median share of an untouched call, over n prompts."""

    value: Scalar
    lpips: float
    share: float
    n: int


class Tried(NamedTuple):
    """A setting as the search saw it, and the upper bound that unseen prompts gave."""

    point: Point
    bound: float


def fastest(points: Iterable[Point], level: float) -> Point | None:
    """Return the fastest setting whose mean LPIPS is at most a level."""
    return min((one for one in points if one.lpips <= level), key=lambda one: one.share,
               default=None)  # fmt: skip


def bold_end(domain: Domain, points: Sequence[Point]) -> int:
    """Return 1 where calls get faster towards the end of the axis, -1 where towards its start."""
    votes = 0
    for one, other in combinations(points, 2):
        ahead = place(domain, other.value) - place(domain, one.value)
        gain = one.share - other.share
        votes += (ahead > 0) == (gain > 0) if ahead and gain else 0
        votes -= (ahead > 0) != (gain > 0) if ahead and gain else 0
    return 1 if votes >= 0 else -1


def refine(
    domain: Domain, known: Sequence[Point], level: float,
    measure: Callable[[Scalar], Point | None], tries: int,
) -> None:  # fmt: skip
    """Bisect the knob between the fastest setting within a level and the next bolder one over it.

    `measure` looks at a setting on more prompts than the known points were; the fastest known
    setting is looked at first, and is not one of the `tries`.
    """
    points = {one.value: one for one in known}
    way, asked = bold_end(domain, known), set[Scalar]()
    for left in range(tries, -1, -1):
        good = fastest(points.values(), level)
        if good is None:
            return
        value = good.value if left == tries else _halfway(domain, points, good, level, way)
        if value is None or value in asked:
            return
        asked.add(value)
        found = measure(value)
        if found is None:
            return
        points[value] = found


def _halfway(
    domain: Domain, points: dict[Scalar, Point], good: Point, level: float, way: int
) -> Scalar | None:
    """Return the value between a setting and its nearest bolder one over the level, if any."""
    at = place(domain, good.value)
    over = [one for one in points.values()
            if one.lpips > level and (place(domain, one.value) - at) * way > 0]  # fmt: skip
    if not over:
        return None
    bad = min(over, key=lambda one: abs(place(domain, one.value) - at))
    middle = between(domain, good.value, bad.value)
    return None if middle in (good.value, bad.value) else middle


def following(points: Iterable[Point], tried: Sequence[Tried], level: float) -> Point | None:
    """Return the setting to certify next, None where the last one is near enough to the level.

    The bound is taken to grow like the mean of the search's prompts. The setting is slower than
    all that failed and faster than all that held.
    """
    last = tried[-1]
    if ROOM * level <= last.bound <= level:
        return None
    wanted = last.point.lpips * level / max(last.bound, 1e-6)
    slow = max((one.point.share for one in tried if one.bound > level), default=0.0)
    fast = min((one.point.share for one in tried if one.bound <= level), default=math.inf)
    known = {one.point.value for one in tried}
    left = (one for one in points if slow < one.share < fast and one.value not in known)
    return fastest(left, wanted)
