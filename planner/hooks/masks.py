"""Masks of steps as they are written: 1 computed, 0 skipped, of several groups with | between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from planner.hooks.geometry import Matrix, masks, shared_masks

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


def best_masks(of: Sequence[Matrix]) -> dict[int, str]:
    """Return the best mask by its computed steps; for several forecasts, those in the mean.

    `of` are the errors of each group's forecasts, as `geometry.errors` gives them.
    """
    if len(of) == 1:
        return masks(of[0])
    found = shared_masks(of) if of else {}
    return {total // len(of): BETWEEN.join(each)
            for total, each in found.items() if not total % len(of)}  # fmt: skip


def moved(mask: str) -> Iterator[str]:
    """Give every mask in which one computed step lies one or two steps earlier or later."""
    for step in (i for i, one in enumerate(mask) if one == "1" and i):
        for other in (step - 1, step + 1, step - 2, step + 2):
            if 0 < other < len(mask) and mask[other] == "0":
                new = list(mask)
                new[step], new[other] = "0", "1"
                yield "".join(new)
