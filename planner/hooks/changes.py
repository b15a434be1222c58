"""How much neighbouring denoising steps differ: the indicator that caches look at.

The indicator is the timestep-modulated input of the first block (TeaCache, arXiv 2411.19108);
what it should predict is the change of what the block stack adds to its input, the residual.
"""

from __future__ import annotations

from typing import Any

from planner.case.telemetry import Telemetry
from planner.hooks.blocks import Stack, Streams, denoiser_of
from planner.hooks.branches import PerBranch
from planner.hooks.clock import StepClock
from planner.hooks.modulation import modulated_input

MOST = 1e6
"""The largest relative change that is told apart; also what a change that is not a number gets."""


def relative_change(now: Any, before: Any) -> float:
    """Return mean|now - before| / mean|before|, at most `MOST` (also where before is all zero)."""
    import torch

    pair = torch.stack([(now - before).abs().mean(), before.abs().mean()])
    change, scale = pair.tolist()  # one wait for the device, not two
    return change / scale if change < MOST * scale else MOST


def magnitude_ratio(now: Any, before: Any) -> float:
    """Return the mean over tokens of |now| / |before| (Euclidean norms), at most `MOST`."""
    ratio = now.norm(dim=-1) / before.norm(dim=-1)
    return min(float(ratio.nan_to_num(MOST, MOST, MOST).mean()), MOST)


def image_residual(added: list[Streams]) -> Any:
    """Return what the whole stack added to the image tokens, or the last segment alone did."""
    total = added[0][0]
    for image, _ in added[1:]:
        total = total + image if total.shape == image.shape else image
    return total


class _Last:
    """What one branch showed at its previous step."""

    def __init__(self) -> None:
        self.indicator: Any = None
        self.residual: Any = None


class Recorder:
    """Watches full runs and keeps every branch's changes from step to step.

    Put on with `Recording`; one or more pipeline calls; then `telemetry()`, `points()`.
    """

    def __init__(self, clock: StepClock) -> None:
        self._clock = clock
        self._branches = PerBranch(_Last, clock)
        self._changes: dict[tuple[str, int], list[list[float]]] = {}
        self._ratios: dict[tuple[str, int], list[float]] = {}

    def restart(self) -> None:
        """Begin another pipeline call; register with the clock's `on_reset`."""
        self._branches.clear()

    def reuse(self, branch: str, head: Any, args: Any, kwargs: Any) -> None:
        """Note the indicator; never reuse anything."""
        last = self._branches[branch]
        now = modulated_input(head, args, kwargs)
        if last.indicator is not None:
            pair = self._changes.setdefault((branch, self._clock.step), [[], []])
            pair[0].append(relative_change(now, last.indicator))
        last.indicator = now

    def computed(self, branch: str, added: list[Streams]) -> None:
        """Note the residual of the run that just ended."""
        last = self._branches[branch]
        now = image_residual(added)
        if last.residual is not None:
            pair = self._changes.setdefault((branch, self._clock.step), [[], []])
            pair[1].append(relative_change(now, last.residual))
            ratios = self._ratios.setdefault((branch, self._clock.step), [])
            ratios.append(magnitude_ratio(now, last.residual))
        last.residual = now

    def points(self) -> tuple[list[float], list[float]]:
        """Return all indicator changes and the residual changes next to them."""
        pairs = self._changes.values()
        xs = [x for pair in pairs for x in pair[0]]
        return xs, [y for pair in pairs for y in pair[1]]

    def telemetry(self) -> Telemetry:
        """Return the changes per branch and step, averaged over the recorded calls."""
        branches: dict[str, tuple[list[float], list[float]]] = {}
        for (branch, _), pair in sorted(self._changes.items()):
            indicator, residual = branches.setdefault(branch, ([], []))
            indicator.append(sum(pair[0]) / len(pair[0]))
            residual.append(sum(pair[1]) / len(pair[1]))
        frozen = {name: (tuple(i), tuple(r)) for name, (i, r) in branches.items()}
        return Telemetry(branches=frozen, ratios=self.ratios())

    def ratios(self) -> dict[str, tuple[float, ...]]:
        """Return per branch how much longer the residual is than a step before, step by step."""
        found: dict[str, list[float]] = {}
        for (branch, _), seen in sorted(self._ratios.items()):
            found.setdefault(branch, []).append(sum(seen) / len(seen))
        return {branch: tuple(ratios) for branch, ratios in found.items()}


class Recording:
    """A recorder on a pipeline's block stack, until the `with` block ends."""

    def __init__(self, pipeline: Any, clock: StepClock) -> None:
        self._denoiser = denoiser_of(pipeline)
        self._clock = clock

    def __enter__(self) -> Recorder:
        recorder = Recorder(self._clock)
        self._stop = self._clock.on_reset(recorder.restart)
        self._stack = Stack(self._denoiser, recorder, self._clock, "planner_record")
        return recorder

    def __exit__(self, *_: object) -> None:
        self._stack.detach()
        self._stop()
