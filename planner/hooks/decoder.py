"""How often a pipeline's decoder runs in one call: what tiles and slices are counted by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planner.case.noun import Scalar
from planner.hooks.clock import StepClock

COUNT = "decodes"
"""The statistic that holds the count."""


def count_decodes(vae: Any, statistics: dict[str, Scalar], clock: StepClock) -> Callable[[], None]:
    """Count the decoder's forwards of a call into `decodes`; returns the undo.

    The figure of a call stays readable after it, until the next call decodes.
    """
    fresh = [True]

    def count(*_: Any) -> None:
        before = 0 if fresh[0] else statistics.get(COUNT)
        statistics[COUNT] = (before if isinstance(before, int) else 0) + 1
        fresh[0] = False

    def restart() -> None:
        fresh[0] = True

    undo = [vae.decoder.register_forward_pre_hook(count).remove, clock.on_reset(restart)]

    def take_off() -> None:
        while undo:
            undo.pop()()

    return take_off
