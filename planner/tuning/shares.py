"""What caches leave to compute, learned within a study: no architecture tells it beforehand.

A cache that decides at run time computes a share of the denoiser's forwards that falls as its
threshold grows. With fewer steps each step changes more, so that a threshold counts by the steps
that it spans: half the steps under one threshold are like all steps under half of it. Before a
cache has run here, what was published of others' is the only guide.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from planner.case.outcome import Measured
from planner.passes.base import Settings
from planner.prediction.speeds import fitted

_LEAST = 0.01
"""The least reuse that counts, in reused forwards for each computed one: logarithms need one."""


class Share(NamedTuple):
    """The part of a denoiser's forwards that a cache computes, between two ends."""

    least: float
    middle: float
    most: float


class Shares:
    """Computed shares of every cache that ran in this study, by the reach of its threshold."""

    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[float, float]]] = {}

    def learn(self, name: str, settings: Settings, steps: float, share: float) -> None:
        """Keep what a cache computed; `steps` is the plan's, as a share of the untouched call's."""
        start = _start(settings)
        rest = max(1e-3, (share - start) / (1 - start))
        point = (_reach(settings, steps), max(_LEAST, 1 / rest - 1))
        self._seen.setdefault(name, []).append(point)

    def knows(self, name: str) -> bool:
        """Tell whether this cache has run in the study."""
        return name in self._seen

    def expect(self, name: str, settings: Settings, steps: float) -> Share:
        """Return the share that a cache will compute; one value where it has run before."""
        if not self.knows(name):
            return Share(*(1 / (1 + (1 / share - 1) * steps) for share in _published()))
        reused = self._reused(name, _reach(settings, steps))
        start = _start(settings)
        share = start + (1 - start) / (1 + reused)
        return Share(share, share, share)

    def _reused(self, name: str, reach: float) -> float:
        """Return reused forwards for each computed one: between measured reaches, or in proportion.

        More reach never reuses less, whatever the noise of two trials says.
        """
        reaches, reused = np.array(sorted(self._seen[name])).T
        reused = np.maximum.accumulate(reused)
        if reach < reaches[0]:
            return float(reused[0] * reach / reaches[0])
        if reach > reaches[-1]:
            return float(reused[-1] * reach / reaches[-1])
        return float(np.exp(np.interp(np.log(reach), np.log(reaches), np.log(reused))))


def measured_share(name: str, outcome: Measured) -> float | None:
    """Return the share of forwards that a cache computed in a trial; None without counts."""
    counts = outcome.statistics.get(name, {})
    computed, reused = (float(counts.get(key) or 0) for key in ("computed", "reused"))
    return computed / (computed + reused) if computed else None


def _published() -> Share:
    """Return the range of what others' caches left to compute, without rules of single models."""
    known = sorted(value for key, value in fitted().caches.items() if "," not in key)
    return Share(known[0], known[len(known) // 2], known[-1])


def _start(settings: Settings) -> float:
    """Return the part of the schedule in which every step is computed anyway."""
    return min(0.99, float(getattr(settings, "start", 0.0) or 0.0))


def _reach(settings: Settings, steps: float) -> float:
    return max(1e-6, float(getattr(settings, "threshold", 1.0)) * steps)
