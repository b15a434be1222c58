"""Compute the block stack at chosen steps only, and forecast what it adds at the others.

What it does: one reference run shows how the residuals of all steps lie to each other; from that
follows, without another forward, at which steps the stack is best computed, for any number of them.
At the others what it adds is the last computed residual, or a straight line through the last two.
When it helps: long schedules; wherever latency must not depend on the prompt: the steps are known
before the run, nothing is compared, the host waits for nothing, and graphs can be captured.
What it costs: one or two residuals of memory a branch; a reference run, again after a change of
steps, precision or scheduler.
When not: order 1 on quantized layers, whose noise a line draws out; prompts that differ much in
when their images change; 8 steps or fewer; with Animate, whose face adapters read the stream
between blocks.
Source: static schedules as in SmoothCache (arXiv 2411.10510) and the step masks of cache-dit;
forecasts as in TaylorSeer (arXiv 2503.06923). Finding the steps by dynamic programming over the
residuals' inner products is planner's own.
"""

from __future__ import annotations

from typing import Any

from planner.case.telemetry import Telemetry
from planner.case.work import Phase, Work
from planner.case.workload import Workload
from planner.errors import TrialFailed
from planner.hooks.geometry import Residuals, errors, masks
from planner.hooks.reuse import reused_none, skipping_steps, whole_steps
from planner.hooks.skipping import Masked, skipping
from planner.passes.base import (
    Artifact,
    Context,
    Family,
    Fidelity,
    Need,
    Pass,
    Render,
    Settings,
    Stage,
    Statistics,
    Undo,
    knob,
    one_denoiser,
)

ORDERS = (0, 1)
_FEWEST = 3
"""Computed steps at the least: fewer leave nothing of the trajectory."""


class StepMaskSettings(Settings):
    """How many steps are computed, and how the others are forecast."""

    share: float = knob(
        0.5, "share of the steps at which the stack is computed", low=0.1, high=0.8, step=0.02,
        least=0.0, most=1.0,
    )  # fmt: skip
    order: int = knob(
        1, "forecast from the last residual (0), or along the last two (1)", choices=ORDERS,
        least=0, most=1,
    )  # fmt: skip


def computed_steps(settings: StepMaskSettings, steps: int) -> int:
    """Return how many of a schedule's steps are computed: not all, which would be no cache."""
    return max(min(_FEWEST, steps), min(steps - 1, round(settings.share * steps)))


def apply(pipeline: Any, settings: StepMaskSettings, context: Context) -> Undo:
    """Put the mask on the block stack. Raises `TrialFailed` without a calibration's artifact."""
    if context.artifact is None:
        raise TrialFailed("step_mask has no artifact", stage="apply", value=None,
                          way_out="calibrate it on this pipeline first")  # fmt: skip
    choice = Masked({"": _mask(context.artifact, settings)}, context.clock)
    return skipping(pipeline, choice, context.clock, context.statistics, "planner_step_mask",
                    settings.order)  # fmt: skip


def _mask(artifact: Artifact, settings: StepMaskSettings) -> str:
    """Return the mask with the wanted number of steps, else the one whose number is nearest."""
    known: list[str] = artifact["masks"][str(settings.order)]
    wanted = computed_steps(settings, len(known[0]))
    return min(known, key=lambda one: abs(one.count("1") - wanted))


def needed(artifact: Artifact, settings: StepMaskSettings) -> Artifact:
    """Return the one mask of these settings: a reviewer reads which steps are computed."""
    return {"masks": {str(settings.order): [_mask(artifact, settings)]}}


def calibrate(
    pipeline: Any, settings: StepMaskSettings, context: Context, render: Render
) -> Artifact:
    """Find the best steps for every number of them, from reference runs with earlier passes on.

    Returns {"masks": for each order one string a number of computed steps, 1 for a computed step}.
    """
    with Residuals(pipeline, context.clock) as seen:
        render()
        grams, places = seen.grams, seen.places
    if len(places) < _FEWEST or not grams:
        raise TrialFailed(f"step_mask saw {len(places)} steps", stage="calibrate",
                          value=len(places), way_out="calibrate on a longer call")  # fmt: skip
    found = {str(order): masks(errors(grams, places, order)) for order in ORDERS}
    fewest = min(_FEWEST, len(places))
    return {"masks": {order: [one[count] for count in range(fewest, len(places))]
                      for order, one in found.items()}}  # fmt: skip


def effect(work: Work, settings: StepMaskSettings, telemetry: Telemetry | None) -> Work:
    """Lower the share of all blocks to that of the computed steps; hold what they added."""

    def share(phase: Phase) -> float | None:
        steps = round(phase.calls)
        return computed_steps(settings, steps) / steps if steps else None

    return skipping_steps(work, share, settings.order + 1)


def observe(settings: StepMaskSettings, statistics: Statistics, workload: Workload) -> str | None:
    """Answer a sentence if nothing was reused."""
    return reused_none("step_mask", settings.share, statistics, "share")


_SOURCE = "SmoothCache, arXiv 2411.10510; TaylorSeer, arXiv 2503.06923; cache-dit's step masks"

PASS = Pass(
    name="step_mask",
    family=Family.CACHING,
    stage=Stage.CACHE,
    fidelity=Fidelity.APPROXIMATE,
    source=_SOURCE,
    settings=StepMaskSettings,
    owns=("denoiser.step_reuse",),
    needs=(
        *(Need(*pair) for pair in whole_steps("step_mask")),
        one_denoiser("step_mask"),
    ),
    effect=effect,
    calibrate=calibrate,
    needed=needed,
    apply=apply,
    observe=observe,
    # A line through two residuals also draws out the noise of a number format: without one first.
    seeds=({"share": 0.4, "order": 0}, {"share": 0.26, "order": 1}),
    batch_invariant=True,
)
