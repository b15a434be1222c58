"""The rungs of a ladder, and the ladder: what is predicted of plans for a device."""

from __future__ import annotations

from typing import Any, Literal

from planner.case.noun import Noun
from planner.catalog.quality import Published
from planner.units import format_seconds

Name = Literal["untouched", "quantize", "fit", "cache", "steps"]

_BOUNDS = {"encode": "encode the prompt", "denoise": "denoise", "decode": "decode",
           "host": "start a call on the host"}  # fmt: skip


class Rung(Noun):
    """One step of the ladder with everything below it, predicted.

    `seconds` is the middle of `low` and `high`; `lacks` the bytes by which its memory is over the
    limit, zero where it fits. `rests_on` says what the figures stand on, `quality` what is known
    of the images, `anchors` what others measured of those that its new passes make.
    """

    name: Name
    plan: str
    passes: dict[str, dict[str, Any]]
    seconds: float
    low: float
    high: float
    memory: float
    lacks: float
    rests_on: str
    quality: str
    anchors: tuple[Published, ...] = ()


class Ladder(Noun):
    """All rungs, whether the last one meets the goal, and the least that any plan could take.

    `floor` is the seconds of the last rung with a single step at the optimistic end, by what takes
    them: encode, denoise and decode, and the host outside all of these. `front` holds every
    predicted plan that no other beats in both seconds and memory.
    """

    rungs: tuple[Rung, ...]
    meets: bool
    floor: dict[str, float]
    front: tuple[tuple[str, float, float], ...]

    @property
    def last(self) -> Rung:
        """Return the highest rung."""
        return self.rungs[-1]

    @property
    def floor_said(self) -> str:
        """Say how little time is left to save, and what bounds it."""
        most = max(self.floor, key=self.floor.__getitem__)
        least, part = format_seconds(sum(self.floor.values())), format_seconds(self.floor[most])
        return f"one step of the last rung takes {least} at best, {part} of it to {_BOUNDS[most]}"
