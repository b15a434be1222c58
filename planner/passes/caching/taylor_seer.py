"""Compute the block stack every few steps, and forecast what it adds in between.

What it does: the stack runs in the first steps and then at every so many steps; in between what it
adds is forecast by a polynomial through the last computed residuals, over the noise level.
When it helps: long schedules at high speed-ups, where reuse alone would blur.
What it costs: one residual of memory a branch and order, besides the last one. Nothing is
calibrated, nothing compared; latency does not depend on the prompt.
When not: intervals so long that the line leaves the trajectory (order 2 sooner than order 1); 8
steps or fewer; with Animate, whose face adapters read the stream between blocks.
Source: TaylorSeer (Liu et al. 2025, arXiv 2503.06923), in its lite mode, which forecasts the whole
stack's residual and not every module's: m + 1 tensors a block list instead of m + 1 a module, and a
skipped step runs no block, while the full mode still runs all norms and additions.
"""

from __future__ import annotations

from typing import Any

from planner.case.telemetry import Telemetry
from planner.case.work import Phase, Work
from planner.case.workload import Workload
from planner.hooks.clock import StepClock
from planner.hooks.reuse import reused_none, skipping_steps, whole_steps
from planner.hooks.skipping import skipping
from planner.passes.base import (
    Context,
    Family,
    Fidelity,
    Masks,
    Need,
    Pass,
    Settings,
    Stage,
    Statistics,
    Undo,
    knob,
)
from planner.passes.needs import one_denoiser


class TaylorSeerSettings(Settings):
    """How often the stack runs, how the rest is forecast, and from where on."""

    interval: int = knob(3, "every how many steps the stack runs", low=2, high=8, step=1, least=1,
                         most=1000)  # fmt: skip
    order: int = knob(1, "order of the forecast", choices=(0, 1, 2), least=0, most=2)
    first: int = knob(3, "steps at the start that are all computed", low=1, high=10, step=1,
                      least=1, most=1000)  # fmt: skip


def runs(settings: TaylorSeerSettings, step: int) -> bool:
    """Tell whether the stack runs at a step: in the first ones, then at every `interval`-th."""
    return step < settings.first or (step - settings.first + 1) % settings.interval == 0


class _Interval:
    """Skips all steps but every so many, in a call of any length."""

    def __init__(self, settings: TaylorSeerSettings, clock: StepClock) -> None:
        self._settings, self._clock = settings, clock

    def restart(self) -> None:
        """Have nothing to forget."""

    def skips(self, branch: str, block: Any, args: Any, kwargs: Any) -> bool:
        """Tell whether this step lies between two computed ones."""
        return not runs(self._settings, self._clock.step)


def apply(pipeline: Any, settings: TaylorSeerSettings, context: Context) -> Undo:
    """Put the interval on the block stack."""
    choice = _Interval(settings, context.clock)
    return skipping(pipeline, choice, context.clock, context.statistics, "planner_taylor_seer",
                    settings.order)  # fmt: skip


def masks(settings: TaylorSeerSettings, telemetry: Telemetry) -> Masks:
    """Return the steps that are computed: the same in every call and branch."""
    mask = "".join("01"[runs(settings, step)] for step in range(telemetry.steps))
    return [dict.fromkeys(run, mask) for run in telemetry.runs]


def effect(work: Work, settings: TaylorSeerSettings, telemetry: Telemetry | None) -> Work:
    """Lower the share of all blocks to that of the computed steps; hold what they added."""

    def share(phase: Phase) -> float | None:
        steps = round(phase.calls)
        return sum(runs(settings, step) for step in range(steps)) / steps if steps else None

    return skipping_steps(work, share, settings.order + 1)


def observe(
    settings: TaylorSeerSettings, statistics: Statistics, workload: Workload
) -> str | None:
    """Answer a sentence if nothing was forecast."""
    return reused_none("taylor_seer", settings.interval, statistics, "interval")


_SOURCE = "Liu et al. 2025, arXiv 2503.06923"

PASS = Pass(
    name="taylor_seer",
    family=Family.CACHING,
    stage=Stage.CACHE,
    fidelity=Fidelity.APPROXIMATE,
    source=_SOURCE,
    settings=TaylorSeerSettings,
    owns=("denoiser.step_reuse",),
    needs=(
        *(Need(*pair) for pair in whole_steps("taylor_seer")),
        one_denoiser("taylor_seer"),
    ),
    effect=effect,
    masks=masks,
    apply=apply,
    observe=observe,
    seeds=({"interval": 3, "order": 1}, {"interval": 4, "order": 1, "first": 4}),
    batch_invariant=True,
)
