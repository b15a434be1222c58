"""Masks of steps as they are written: 1 computed, 0 skipped, of several groups with | between."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

BETWEEN = "|"


def is_mask(mask: str) -> bool:
    """Tell whether a text is a mask, or several alike long ones, that skips something."""
    parts = mask.split(BETWEEN)
    known = all(part[:1] == "1" and not set(part) - {"0", "1"} for part in parts)
    return known and "0" in mask and len({*map(len, parts)}) == 1


def stretched(mask: str, steps: int) -> str:
    """Return a mask for another number of steps: each does as the nearest one of the mask."""
    if steps == len(mask) or steps < 2:
        return mask if steps == len(mask) else "1" * steps
    scale = (len(mask) - 1) / (steps - 1)
    return "".join(mask[round(step * scale)] for step in range(steps))


def computed_in(mask: str, steps: int) -> float:
    """Return how many of so many steps a mask computes, several in the mean."""
    return fmean(stretched(part, steps).count("1") for part in mask.split(BETWEEN))


def moved(mask: str) -> Iterator[str]:
    """Give every mask in which one computed step lies one or two steps earlier or later."""
    for step in (i for i, one in enumerate(mask) if one == "1" and i):
        for other in (step - 1, step + 1, step - 2, step + 2):
            if 0 < other < len(mask) and mask[other] == "0":
                new = list(mask)
                new[step], new[other] = "0", "1"
                yield "".join(new)
