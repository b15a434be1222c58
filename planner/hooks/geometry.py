"""How the residuals of all steps lie to each other, and the steps that are best computed.

One reference run gives every pair of steps' inner product. From these alone follows how far off
any forecast from any computed steps would be, so that the best steps are found without another
forward: by dynamic programming, exactly, for errors that add up over the schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.hooks.blocks import Stack, Streams, denoiser_of
from planner.hooks.changes import image_residual, magnitude_ratio
from planner.hooks.clock import StepClock
from planner.hooks.forecast import weights

Matrix = NDArray[np.float64]

_TOKENS = 256
"""Image tokens of a residual that are looked at, evenly spaced: a video's would not fit."""


class Residuals:
    """Keeps the residuals of reference runs, a branch at a time, until the `with` block ends."""

    def __init__(self, pipeline: Any, clock: StepClock) -> None:
        self._denoiser, self._clock = denoiser_of(pipeline), clock
        self._running: dict[str, dict[int, Any]] = {}
        self._places: dict[int, float] = {}
        self._grams: list[Matrix] = []
        self._ratios: dict[str, list[list[float]]] = {}

    def __enter__(self) -> Residuals:
        self._stop = self._clock.on_reset(self._end_call)
        self._stack = Stack(self._denoiser, self, self._clock, "planner_residuals")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.detach()
        self._stop()

    def reuse(self, branch: str, head: Any, args: Any, kwargs: Any) -> None:
        """Never reuse anything."""

    def computed(self, branch: str, added: list[Streams]) -> None:
        """Keep some tokens of the residual of the run that just ended."""
        residual = image_residual(added)
        every = max(1, residual.shape[1] // _TOKENS)
        kept = residual[:, ::every].float().cpu().flatten(0, 1)
        self._running.setdefault(branch, {})[self._clock.step] = kept
        self._places[self._clock.step] = self._clock.place

    def _end_call(self) -> None:
        import torch

        for branch, residuals in self._running.items():
            if sorted(residuals) == list(range(len(self._places))):  # a branch that ran throughout
                ordered = [residuals[step] for step in sorted(residuals)]
                rows = torch.stack(ordered).flatten(1)
                self._grams.append((rows @ rows.T).double().numpy() / rows.shape[1])
                ratios = [magnitude_ratio(now, old) for old, now in pairwise(ordered)]
                self._ratios.setdefault(branch, []).append(ratios)
        self._running = {}

    @property
    def grams(self) -> tuple[Matrix, ...]:
        """Return steps × steps mean products, one matrix a branch of every recorded call."""
        return tuple(self._grams)

    @property
    def ratios(self) -> dict[str, list[float]]:
        """Return per branch how much longer the residual is than a step before, step by step."""
        return {branch: [float(one) for one in np.mean(seen, 0)]
                for branch, seen in self._ratios.items()}  # fmt: skip

    @property
    def places(self) -> tuple[float, ...]:
        """Return the place of every step on the schedule."""
        return tuple(self._places[step] for step in sorted(self._places))


def errors(grams: Sequence[Matrix], places: Sequence[float], order: int) -> Matrix:
    """Return previous × last × step: how far a forecast from two computed steps is off there.

    Errors are root mean squares over a residual's values, times the stretch of the schedule that
    the step covers: by so much they move the latents. They are the mean over the matrices. Where
    the previous step is the last one too, only that one is known.
    """
    count, gram = len(places), np.stack(grams)
    end = 0.0 if places[0] > places[-1] else places[-1] + 1.0  # noise levels end at none
    stretch = np.abs(np.diff([*places, end]))
    own = gram.diagonal(axis1=1, axis2=2)
    found = np.zeros((count, count, count))
    for last in range(count):
        for before in range(last) if order and last else (last,):
            known = [places[before], places[last]][before == last :]
            parts = np.array([weights(known, place, order) for place in places[last + 1 :]])
            if not len(parts):
                continue
            rows = [before, last][before == last :]
            inner = gram[:, rows][:, :, last + 1 :]
            square = own[:, last + 1 :] - 2 * np.einsum("kr,mrk->mk", parts, inner)
            square += np.einsum("kr,mrs,ks->mk", parts, gram[:, rows][:, :, rows], parts)
            found[before, last, last + 1 :] = np.sqrt(np.maximum(square, 0.0)).mean(0)
        if not order:
            found[:last, last] = found[last, last]
    weighted: Matrix = found * stretch
    return weighted


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


def _traced(came: Sequence[NDArray[np.int64]], before: int, last: int, count: int) -> str:
    steps = [last]
    for table in reversed(came):
        steps.append(before)
        before, last = int(table[before, last]), before
    return "".join("01"[step in steps] for step in range(count))
