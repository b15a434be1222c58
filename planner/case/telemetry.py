"""What reference runs show about how much the steps of a schedule differ."""

from __future__ import annotations

from itertools import pairwise

from planner.case.noun import Noun

Rows = tuple[tuple[float, ...], ...]

OUTPUT, RESIDUAL = "output", "residual"
"""Names of what the denoiser returns, and of what its block stack adds to the image tokens."""


def group_residual(index: int) -> str:
    """Return the name of what one group of the block stack adds to the image tokens."""
    return f"{RESIDUAL} of group {index + 1}"


class Series(Noun):
    """One tensor followed over the steps of a call.

    `sizes` are its mean absolute values, step by step; row i of `apart` holds the mean absolute
    differences to steps 0 … i-1; row i of `products`, where they were kept, the mean products with
    steps 0 … i. `ratios` are, from step 1 on, the mean over tokens of its length by that of the
    step before (MagCache, arXiv 2506.09045).
    """

    sizes: tuple[float, ...]
    apart: Rows
    products: Rows = ()
    ratios: tuple[float, ...] = ()

    def change(self, now: int, before: int) -> float:
        """Return mean|x_now - x_before| / mean|x_before|; large where x_before is nothing."""
        size = self.sizes[before]
        apart = self.apart[now][before] if now > before else 0.0
        return apart / size if apart < _MOST * size else _MOST

    def changes(self) -> tuple[float, ...]:
        """Return the change from each step to the next; one shorter than the steps."""
        return tuple(self.change(step, step - 1) for step in range(1, len(self.sizes)))

    def picked(self, steps: tuple[int, ...]) -> Series:
        """Return the series as though only these steps had been there, in this order."""
        ratios = [1.0, *self.ratios]
        grown = []
        for old, new in pairwise(steps):
            factor = 1.0
            for step in range(old + 1, new + 1):
                factor *= ratios[step] if self.ratios else 1.0
            grown.append(factor)
        return Series(
            sizes=tuple(self.sizes[i] for i in steps),
            apart=tuple(tuple(self.apart[i][j] if i > j else 0.0 for j in steps[:at])
                        for at, i in enumerate(steps)),
            products=tuple(tuple(self.products[i][j] for j in steps[: at + 1])
                           for at, i in enumerate(steps)) if self.products else (),
            ratios=tuple(grown) if self.ratios else (),
        )  # fmt: skip


_MOST = 1e6
"""The largest relative change that is told apart."""

Recorded = dict[str, dict[str, Series]]
"""One recorded call: branch → name of the tensor → series."""


class Telemetry(Noun):
    """Series of every branch in a few recorded calls, and where their steps lie on the schedule.

    Every pass that asked for a tensor finds it under its own name; `latents` (the denoiser's
    input), `output` (its output), `residual` (what the block stack adds) and what each group of its
    blocks adds are always there where the denoiser shows them. Branches that did not run at every
    step are left out.
    """

    places: tuple[float, ...]
    runs: tuple[Recorded, ...]

    @property
    def steps(self) -> int:
        """Return how many steps were recorded."""
        return len(self.places)

    def series(self, name: str) -> tuple[dict[str, Series], ...]:
        """Return per recorded call the series of that name by branch, where there are any."""
        found = ({branch: seen[name] for branch, seen in run.items() if name in seen}
                 for run in self.runs)  # fmt: skip
        return tuple(branches for branches in found if branches)

    def at(self, steps: int) -> Telemetry:
        """Return what a call of another number of steps would show: its nearest recorded steps.

        More steps than were recorded repeat some of them.
        """
        if steps == self.steps or not steps or not self.steps:
            return self
        scale = (self.steps - 1) / max(1, steps - 1)
        picked = tuple(round(step * scale) for step in range(steps))
        runs = tuple(
            {branch: {name: series.picked(picked) for name, series in seen.items()}
             for branch, seen in run.items()}
            for run in self.runs
        )  # fmt: skip
        return Telemetry(places=tuple(self.places[i] for i in picked), runs=runs)
