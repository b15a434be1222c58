"""Classifier-free guidance only in a stretch of the schedule.

What it does: runs the unconditional forward only at steps whose place in the schedule lies in
[start, stop); elsewhere a hook on the denoiser answers it with the conditional branch's output of
the same step, so that the guided prediction equals the conditional one.
When it helps: where guidance costs a second forward at every step. Guidance at high noise harms
variety and at low noise changes little, so that half of the schedule often suffices.
What it costs: nothing to set up. Leaving guidance out early moves the layout; late it is mild.
When not: guidance inside one batch or as an embedding, or a model distilled from guidance.
Source: Kynkäänniemi et al. 2024, arXiv 2404.07724 (there by noise level, here by share of steps).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.case.work import Phase, Work
from planner.case.workload import Workload
from planner.hooks.blocks import denoiser_of
from planner.hooks.branches import Hook, Tally, attach
from planner.passes.base import (
    Context,
    Family,
    Fidelity,
    Need,
    Pass,
    Settings,
    Stage,
    Statistics,
    Undo,
    knob,
)
from planner.passes.needs import one_denoiser

COND, UNCOND = "cond", "uncond"
"""The names that diffusers' pipelines give their branches."""


class GuidanceIntervalSettings(Settings):
    """Where guidance begins and ends, as shares of the schedule."""

    start: float = knob(
        0.0, "share of the steps before guidance begins", low=0.0, high=0.5, step=0.05,
        least=0.0, most=1.0,
    )  # fmt: skip
    stop: float = knob(
        0.7, "share of the steps at which guidance ends", low=0.3, high=1.0, step=0.05,
        least=0.0, most=1.0,
    )  # fmt: skip


def guided(settings: GuidanceIntervalSettings, step: int, total: int) -> bool:
    """Tell whether a step of a schedule of `total` steps is guided."""
    # A hair of tolerance: 0.3 * 10 is 3.0000000000000004 and 0.7 * 10 is 7.000000000000001.
    return settings.start * total - 1e-9 <= step < settings.stop * total - 1e-9


class _Hook(Hook):
    """Answers the unconditional forward with the conditional one's output."""

    def __init__(self, settings: GuidanceIntervalSettings, context: Context) -> None:
        super().__init__()
        self._settings = settings
        self._clock = context.clock
        self._cond: Any = None
        self._cond_step = -1
        self._tally = Tally(context.statistics, context.clock)

    def restart(self) -> None:
        self._cond = None
        self._cond_step = -1
        self._tally.restart()

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        clock = self._clock
        branch = self.branch
        if not clock.running or guided(self._settings, clock.step, clock.total):
            output = self.fn_ref.original_forward(*args, **kwargs)
        elif branch == UNCOND and self._cond_step == clock.step:
            output, self._cond = self._cond, None
            self._tally.add(branch, computed=False)
            return output
        else:
            output = self.fn_ref.original_forward(*args, **kwargs)
            if branch == COND:
                self._cond, self._cond_step = output, clock.step
        if clock.running:
            self._tally.add(branch, computed=True)
        return output


def apply(pipeline: Any, settings: GuidanceIntervalSettings, context: Context) -> Undo:
    """Put the hook on the denoiser."""
    denoiser = denoiser_of(pipeline)
    hook = _Hook(settings, context)
    detach = attach(denoiser, denoiser, hook, "planner_guidance_interval")
    stop: Callable[[], None] = context.clock.on_reset(hook.restart)

    def undo() -> None:
        stop()
        detach()

    return undo


def effect(work: Work, settings: GuidanceIntervalSettings, telemetry: Telemetry | None) -> Work:
    """Keep the unconditional branch's calls at guided steps only."""
    total = round(sum(phase.calls for phase in work.phases if phase.branch == UNCOND))
    steps = iter(range(total))  # two experts run theirs one after the other

    def kept(phase: Phase) -> Phase:
        if phase.branch != UNCOND:
            return phase
        mine = islice(steps, round(phase.calls))
        calls = sum(guided(settings, step, total) for step in mine)
        return phase.model_copy(update={"calls": float(calls)})

    return work.mapped(kept)


def observe(
    settings: GuidanceIntervalSettings, statistics: Statistics, workload: Workload
) -> str | None:
    """Answer a sentence if no unconditional forward was left out."""
    steps = int(statistics.get("computed_cond") or 0)  # the plan's own, which may be fewer
    if statistics.get("reused_uncond", 0):
        return None
    expected = sum(not guided(settings, step, steps) for step in range(steps))
    return f"guidance_interval left out no unconditional forward of {steps}; {expected} expected"


def _sequential(case: Case) -> str | None:
    if case.workload.guidance == "sequential":
        return None
    return (
        "guidance_interval needs guidance in a second forward; "
        f"this call's guidance is {case.workload.guidance}"
    )


def _cond_first(case: Case) -> str | None:
    if case.model.traits.branches[:2] == (COND, UNCOND):
        return None
    named = ", ".join(case.model.traits.branches) or "none"
    return f"guidance_interval needs branches named cond, then uncond; this pipeline names {named}"


_SOURCE = "Kynkäänniemi et al. 2024, arXiv 2404.07724"

PASS = Pass(
    name="guidance_interval",
    family=Family.SAMPLING,
    # Around caches of whole steps: beneath one, its answers would be kept as unconditional outputs
    # and forecast from, and steps that are skipped would stay guided.
    stage=Stage.GUIDANCE,
    fidelity=Fidelity.DIVERGENT,
    source=_SOURCE,
    settings=GuidanceIntervalSettings,
    owns=("sampling.guidance",),
    needs=(
        Need(_sequential, _SOURCE),
        Need(_cond_first, "diffusers FluxPipeline.__call__: cache_context(cond), then (uncond)"),
        one_denoiser("guidance_interval"),
    ),
    effect=effect,
    apply=apply,
    observe=observe,
    seeds=({"start": 0.0, "stop": 0.7}, {"start": 0.0, "stop": 0.5}),
    batch_invariant=True,
)
