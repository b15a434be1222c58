"""At which steps a denoiser is best computed, found from how the steps of reference runs lie.

The inner products of every pair of steps tell how far off any forecast from any computed steps
would be, so that the best steps are found without another forward: by dynamic programming,
exactly, for errors that add up over the schedule.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from planner.case.telemetry import Series
from planner.hooks.forecast import weights
from planner.hooks.masks import BETWEEN

Matrix = NDArray[np.float64]


def gram(series: Series) -> Matrix:
    """Return the mean products of all pairs of steps."""
    count = len(series.products)
    found = np.zeros((count, count))
    for step, row in enumerate(series.products):
        found[step, : step + 1] = found[: step + 1, step] = row
    return found


def errors(
    grams: Sequence[Matrix], places: Sequence[float], order: int, early: float = 0.0
) -> Matrix:
    """Return previous × last × step: how far a forecast from two computed steps is off there.

    See `forecast_errors` and `weighed`.
    """
    return weighed(forecast_errors(grams, places, order), places, early)


def weighed(errors: Matrix, places: Sequence[float], early: float) -> Matrix:
    """Return errors by how much they count: times the stretch of the schedule that a step covers.

    By so much they move the latents. `early` is the power of the noise level by which an error
    counts more: what is settled early carries all that follows.
    """
    weight: Matrix = _stretches(places) * _levels(places) ** early
    return np.multiply(errors, weight)


def forecast_errors(grams: Sequence[Matrix], places: Sequence[float], order: int) -> Matrix:
    """Return previous × last × step: the error of a forecast from two computed steps.

    Errors are root mean squares over a tensor's values, in the mean over the matrices. Where the
    previous step is the last one too, only that one is known.
    """
    count, stack = len(places), np.stack(grams)
    own = stack.diagonal(axis1=1, axis2=2)
    found = np.zeros((count, count, count))
    for last in range(count):
        for before in range(last) if order and last else (last,):
            known = [places[before], places[last]][before == last :]
            parts = np.array([weights(known, place, order) for place in places[last + 1 :]])
            if not len(parts):
                continue
            rows = [before, last][before == last :]
            inner = stack[:, rows][:, :, last + 1 :]
            square = own[:, last + 1 :] - 2 * np.einsum("kr,mrk->mk", parts, inner)
            square += np.einsum("kr,mrs,ks->mk", parts, stack[:, rows][:, :, rows], parts)
            found[before, last, last + 1 :] = np.sqrt(np.maximum(square, 0.0)).mean(0)
        if not order:
            found[:last, last] = found[last, last]
    return found


def _stretches(places: Sequence[float]) -> Matrix:
    end = 0.0 if places[0] > places[-1] else places[-1] + 1.0  # noise levels end at none
    return np.abs(np.diff(np.array([*places, end], dtype=float)))


def _levels(places: Sequence[float]) -> Matrix:
    """Return the part of noise in the latents at each place, one at the most and none at the end.

    Levels over one are those of schedules that add noise to unscaled latents; places that are no
    levels count down the steps.
    """
    found: Matrix = np.asarray(places, dtype=float)
    if found[0] < found[-1]:
        found = 1.0 - np.arange(len(found), dtype=float) / len(found)
    elif found[0] > 1.0 + 1e-6:
        found = np.divide(found, 1.0 + found)
    return found


def error_of(errors: Matrix, mask: str) -> float:
    """Return the added error of a mask (1 computed, 0 skipped) that computes its first step."""
    before = last = 0
    total = 0.0
    for step, computed in enumerate(mask):
        if computed == "1" and step:
            before, last = last, step
        elif computed != "1":
            total += float(errors[before, last, step])
    return total


def masks(errors: Matrix) -> dict[int, str]:
    """Return the mask (1 computed, 0 skipped) with the least added error, by steps computed.

    The first step is always computed. Dynamic programming over the last two computed steps.
    """
    count = errors.shape[0]
    until = np.concatenate([np.zeros((count, count, 1)), errors.cumsum(2)], 2)  # steps before one
    best = np.full((count, count), np.inf)
    best[0, 0] = 0.0
    came: list[NDArray[np.int64]] = []
    found = {}
    for computed in range(1, count + 1):
        ends = best + until[:, :, count]
        before, last = np.unravel_index(int(ends.argmin()), ends.shape)
        found[computed] = _traced(came, int(before), int(last), count)
        options = best[:, :, None] + until[:, :, :count]
        options[:, np.arange(count)[:, None] >= np.arange(count)] = np.inf
        came.append(options.argmin(0))
        best = options.min(0)
    return found


def shared_masks(of: Sequence[Matrix]) -> dict[int, tuple[str, ...]]:
    """Return masks for several forecasts, one each, by the steps they compute all together.

    Of all ways to share that number out the one with the least added error; errors of the
    forecasts are taken to add up.
    """
    best: dict[int, tuple[float, tuple[str, ...]]] = {0: (0.0, ())}
    for one in of:
        choices = [(error_of(one, mask), count, mask) for count, mask in masks(one).items()]
        after: dict[int, tuple[float, tuple[str, ...]]] = {}
        for total, (error, before) in best.items():
            for more, count, mask in choices:
                known = after.get(total + count)
                if known is None or error + more < known[0]:
                    after[total + count] = (error + more, (*before, mask))
        best = after
    return {total: found for total, (_, found) in best.items()}


def best_masks(of: Sequence[Matrix]) -> dict[int, str]:
    """Return the best mask by its computed steps; for several forecasts, those in the mean.

    `of` are the errors of each group's forecasts, as `errors` gives them.
    """
    if len(of) == 1:
        return masks(of[0])
    found = shared_masks(of) if of else {}
    return {total // len(of): BETWEEN.join(each)
            for total, each in found.items() if not total % len(of)}  # fmt: skip


def _traced(came: Sequence[NDArray[np.int64]], before: int, last: int, count: int) -> str:
    steps = [last]
    for table in reversed(came):
        steps.append(before)
        before, last = int(table[before, last]), before
    return "".join("01"[step in steps] for step in range(count))
