"""A goal as a person reads and writes it: `budget: 2s`, `vram: 12GiB`, `max_lpips: 0.1`."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Literal

from planner.case.goal import Goal
from planner.case.noun import Noun
from planner.errors import InvalidFile, UsageError
from planner.units import format_bytes, format_seconds, parse_bytes, parse_seconds


class AskedGoal(Noun):
    """A goal in units; `max_lpips: none` says that quality is not constrained."""

    budget: str | None = None
    vram: str | None = None
    max_lpips: float | Literal["none"]
    quality: str | None = None
    prefer: Literal["quality", "speed"]


def write_goal(goal: Goal) -> AskedGoal:
    """Return the goal in units that read back as exactly the same goal."""
    seconds, size = goal.budget_seconds, goal.vram_bytes
    return AskedGoal(
        budget=None if seconds is None else _exact(seconds, format_seconds, parse_seconds, "s"),
        vram=None if size is None else _exact(size, format_bytes, parse_bytes, "B"),
        max_lpips="none" if goal.max_lpips is None else goal.max_lpips,
        quality=goal.quality,
        prefer=goal.prefer,
    )


def read_goal(asked: AskedGoal, *, where: str) -> Goal:
    """Return the goal that a file states. Raises `InvalidFile` for an unreadable quantity."""
    try:
        return Goal(
            budget_seconds=None if asked.budget is None else parse_seconds(asked.budget),
            vram_bytes=None if asked.vram is None else parse_bytes(asked.vram),
            max_lpips=None if asked.max_lpips == "none" else asked.max_lpips,
            quality=asked.quality,
            prefer=asked.prefer,
        )
    except UsageError as error:
        problem = f"{where}: in goal, {error.what}"
        raise InvalidFile(problem, value=error.value, way_out=error.way_out) from error


def _exact(
    value: float, write: Callable[[float], str], read: Callable[[str], float], unit: str
) -> str:
    """Write a quantity in a short unit where that loses nothing, else in full."""
    text = write(value)
    return text if read(text) == value else f"{Decimal(repr(value)):f}{unit}"
