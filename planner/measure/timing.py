"""Seconds of whole calls, with the device idle on both sides."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple, TypeVar

from planner.run.devices.base import Backend

T = TypeVar("T")


class Warmth(NamedTuple):
    """The first call's seconds, with compiling and filling of caches; then those of the rest.

    `steady` says whether the last two calls agreed.
    """

    first_seconds: float
    later_seconds: tuple[float, ...]
    steady: bool


def timed(call: Callable[[], T], backend: Backend) -> tuple[float, T]:
    """Run a call and return its seconds with what it returned."""
    backend.synchronize()
    start = perf_counter()
    result = call()
    backend.synchronize()
    return perf_counter() - start, result


def warm(
    call: Callable[[], object], backend: Backend, tolerance: float = 0.05, most: int = 4
) -> Warmth:
    """Run a call until two consecutive runs agree within `tolerance`, at most `most` times.

    The first call is never one of the two: it is another number, of start-up.
    """
    first, _ = timed(call, backend)
    later: list[float] = []
    while len(later) < most - 1:
        later.append(timed(call, backend)[0])
        if len(later) > 1 and abs(later[-1] - later[-2]) <= tolerance * later[-1]:
            return Warmth(first, tuple(later), steady=True)
    return Warmth(first, tuple(later), steady=False)
