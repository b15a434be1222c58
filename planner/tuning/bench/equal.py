"""The searched mask beside every other method at as many computed forwards: which is nearer?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

from planner.case.noun import Scalar
from planner.tuning.bench.choose import Point, fastest
from planner.tuning.bench.desk import Desk
from planner.tuning.bench.document import Equal, digits
from planner.tuning.bench.journal import EQUAL, SEARCH, Journal
from planner.tuning.bench.knobs import nearest
from planner.tuning.bench.method import Method

MASK = "step_mask"


class _Pair(NamedTuple):
    """A method's setting, and the mask that computes no more forwards."""

    method: Method
    point: Point
    computed: float
    mask: Method
    share: Scalar


def measure_equal(desk: Desk, methods: Sequence[Method]) -> None:
    """Try the mask at as many forwards as each method's fastest setting within each level."""
    for method, point in _settings(desk.journal, methods, desk.scale.levels):
        desk.portrait(method, point.value)
    pairs = list(_pairs(desk, methods))
    for done, pair in enumerate(pairs):
        desk.progress.tick("equal steps", done, len(pairs), pair.method.name)
        lacking = [prompt for prompt in desk.search[: pair.point.n] if desk.journal.find(
            SEARCH, pair.mask.name, pair.share, prompt.id) is None]  # fmt: skip
        # Not for the search: what it looked at must not change once it is over.
        if desk.shots(EQUAL, pair.mask, pair.share, lacking) is not None:
            desk.portrait(pair.mask, pair.share)
    desk.close_bracket()


def equal_rows(desk: Desk, methods: Sequence[Method]) -> Iterator[Equal]:
    """Give one row a setting: both means over the prompts that both were tried on."""
    for pair in _pairs(desk, methods):
        seen = desk.journal.portrait(pair.mask.name, pair.share)
        theirs = _distances(desk.journal, pair.method.name, pair.point.value)
        ours = _distances(desk.journal, pair.mask.name, pair.share)
        both = sorted(theirs.keys() & ours.keys())
        if seen is not None and both:
            yield Equal(
                method=pair.method.name, setting=pair.method.setting(pair.point.value),
                side=pair.method.side, computed=pair.computed,
                lpips=digits(fmean(theirs[prompt] for prompt in both)),
                mask=pair.mask.setting(pair.share),
                mask_computed=round(sum(seen[0].computed.values()), 2),
                mask_lpips=digits(fmean(ours[prompt] for prompt in both)), prompts=len(both),
            )  # fmt: skip


def _pairs(desk: Desk, methods: Sequence[Method]) -> Iterator[_Pair]:
    """Give every setting whose computed forwards are known, with the mask of as many."""
    masks = {one.name: one for one in methods if one.name.startswith(MASK)}
    level, steps = max(desk.scale.levels), desk.rig.case.workload.steps

    def best() -> list[str]:
        shares = {name: point.share for name in masks
                  if (point := fastest(desk.journal.points(name), level)) is not None}
        return sorted(shares, key=lambda name: (shares[name], name))[:1]

    mask = next((masks[name] for name in desk.journal.chosen("equal", level, best)
                 if name in masks), None)  # fmt: skip
    if mask is None:
        return
    for method, point in _settings(desk.journal, methods, desk.scale.levels):
        seen = desk.journal.portrait(method.name, point.value)
        if seen is not None:
            computed = round(sum(seen[0].computed.values()), 2)
            count = math.floor(computed / len(seen[0].shares) + 1e-6)
            yield _Pair(method, point, computed, mask, nearest(mask.domain, count / steps))


def _settings(
    journal: Journal, methods: Sequence[Method], levels: Sequence[float]
) -> Iterator[tuple[Method, Point]]:
    """Give every other method's fastest setting within each level, none of them twice."""
    for method in (one for one in methods if MASK not in one.name):
        found = [fastest(journal.points(method.name), level) for level in levels]
        different = {point.value: point for point in found if point is not None}
        yield from ((method, point) for point in different.values())


def _distances(journal: Journal, method: str, value: Scalar) -> dict[str, float]:
    return {shot.prompt: shot.lpips or 0.0 for purpose in (EQUAL, SEARCH)
            for shot in journal.shots(purpose, method, value)}  # fmt: skip
