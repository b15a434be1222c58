"""Skip the block stack while the residual's length says that little was missed.

What it does: one reference run shows by how much the residual grows or shrinks from step to step,
which hardly depends on the prompt. A step is skipped, and the last residual added again, while the
gathered departure of these ratios from one stays small and not too many steps were skipped in a
row. Which steps these are is known before the run.
When it helps: long schedules in which the ratio stays near one (FLUX, Wan); latency is the same for
every prompt, and the host waits for nothing.
What it costs: one residual of memory a branch; a reference run for each schedule and precision.
When not: schedules whose ratios are far from one; 8 steps or fewer; with Animate, whose face
adapters read the stream between blocks.
Source: MagCache (Ma et al. 2025, arXiv 2506.09045). diffusers' own MagCache takes its blocks out
of compiled graphs; this one leaves them there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planner.case.telemetry import Telemetry
from planner.case.work import Phase, Work
from planner.case.workload import Workload
from planner.errors import TrialFailed
from planner.hooks.geometry import Residuals
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


class MagCacheSettings(Settings):
    """How much error may gather, over how many steps, and from where on."""

    threshold: float = knob(
        0.06, "gathered departure of the ratios from one at which the stack runs again",
        low=0.01, high=0.5, log=True, least=0.0, most=100.0,
    )  # fmt: skip
    most: int = knob(3, "steps that may be skipped in a row", low=1, high=6, step=1, least=1,
                     most=1000)  # fmt: skip
    start: float = knob(
        0.2, "share of the schedule before which every step is computed", low=0.0, high=0.4,
        step=0.05, least=0.0, most=1.0,
    )  # fmt: skip


def mask(ratios: Sequence[float], settings: MagCacheSettings) -> str:
    """Return the steps that the rule computes (1) and skips (0).

    `ratios` are those of steps 1, 2, …; the mask is one longer.
    """
    found, steps = "1", len(ratios) + 1
    gathered, product, skipped = 0.0, 1.0, 0
    for step, ratio in enumerate(ratios, 1):
        if step >= int(settings.start * steps + 0.5):
            product, skipped = product * ratio, skipped + 1
            gathered += abs(1.0 - product)
            if gathered <= settings.threshold and skipped <= settings.most:
                found += "0"
                continue
            gathered, product, skipped = 0.0, 1.0, 0
        found += "1"
    return found


def apply(pipeline: Any, settings: MagCacheSettings, context: Context) -> Undo:
    """Put the mask of each branch on the stack. Raises `TrialFailed` without an artifact."""
    if context.artifact is None:
        raise TrialFailed("mag_cache has no artifact", stage="apply", value=None,
                          way_out="calibrate it on this pipeline first")  # fmt: skip
    ratios = context.artifact["ratios"]
    masks = {branch: mask(seen, settings) for branch, seen in ratios.items()}
    choice = Masked(masks, context.clock)
    return skipping(pipeline, choice, context.clock, context.statistics, "planner_mag_cache")


def calibrate(
    pipeline: Any, settings: MagCacheSettings, context: Context, render: Render
) -> Artifact:
    """Record the residual's ratios in reference runs with all earlier passes on.

    Returns {"ratios": per branch those of steps 1, 2, …}.
    """
    with Residuals(pipeline, context.clock) as seen:
        render()
        ratios = seen.ratios
    if not ratios:
        raise TrialFailed("mag_cache saw no two steps of a branch", stage="calibrate", value=0,
                          way_out="calibrate on a call of at least 2 steps")  # fmt: skip
    return {"ratios": {branch: [float(f"{ratio:.5g}") for ratio in found]
                       for branch, found in ratios.items()}}  # fmt: skip


def effect(work: Work, settings: MagCacheSettings, telemetry: Telemetry | None) -> Work:
    """Lower the share of all blocks to that of the computed steps, if telemetry tells them."""

    def share(phase: Phase) -> float | None:
        seen = telemetry.ratios.get(phase.branch or "single") if telemetry else None
        return mask(seen, settings).count("1") / (len(seen) + 1) if seen else None

    return skipping_steps(work, share)


def observe(settings: MagCacheSettings, statistics: Statistics, workload: Workload) -> str | None:
    """Answer a sentence if nothing was skipped."""
    return reused_none("mag_cache", settings.threshold, statistics)


_SOURCE = "Ma et al. 2025, arXiv 2506.09045"

PASS = Pass(
    name="mag_cache",
    family=Family.CACHING,
    stage=Stage.CACHE,
    fidelity=Fidelity.APPROXIMATE,
    source=_SOURCE,
    settings=MagCacheSettings,
    owns=("denoiser.step_reuse",),
    needs=(
        *(Need(*pair) for pair in whole_steps("mag_cache")),
        one_denoiser("mag_cache"),
    ),
    effect=effect,
    calibrate=calibrate,
    apply=apply,
    observe=observe,
    seeds=({"threshold": 0.06, "start": 0.2}, {"threshold": 0.24, "most": 5, "start": 0.1}),
    batch_invariant=True,
)
