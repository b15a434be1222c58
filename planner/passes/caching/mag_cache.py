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
from statistics import fmean
from typing import Any

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.case.work import Work
from planner.case.workload import Workload
from planner.errors import TrialFailed
from planner.hooks.masks import stretched
from planner.hooks.reuse import (
    computed_share,
    reused_none,
    skipping_steps,
    steps_of,
    whole_steps,
    with_residuals,
)
from planner.hooks.skipping import Masked, skipping
from planner.passes.base import (
    Artifact,
    Context,
    Domain,
    Family,
    Fidelity,
    Masks,
    Need,
    Pass,
    Reference,
    Settings,
    Stage,
    Statistics,
    Undo,
    knob,
)
from planner.passes.needs import narrowed, one_denoiser


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
    seen = context.artifact["ratios"]
    choice = Masked({branch: mask(one, settings) for branch, one in seen.items()}, context.clock)
    return skipping(pipeline, choice, context.clock, context.statistics, "planner_mag_cache")


def calibrate(
    pipeline: Any, settings: MagCacheSettings, context: Context, reference: Reference
) -> Artifact:
    """Record the residual's ratios in reference runs with all earlier passes on.

    Returns {"ratios": per branch those of steps 1, 2, …, "error": by how much those of one call
    are off, as a root mean square; none of a single call}.
    """
    seen = reference.telemetry()
    found = ratios(seen)
    off = [one - mean for run in seen.series("residual") for branch, series in run.items()
           for one, mean in zip(series.ratios, found[branch], strict=True)]  # fmt: skip
    error = {"error": float(f"{fmean(x * x for x in off) ** 0.5:.3g}")} if any(off) else {}
    return {"ratios": {branch: [float(f"{ratio:.5g}") for ratio in known]
                       for branch, known in found.items()}} | error  # fmt: skip


def ratios(telemetry: Telemetry) -> dict[str, list[float]]:
    """Return per branch the mean over recorded calls of the residual's ratios."""
    runs = telemetry.series("residual")
    found: dict[str, list[float]] = {}
    for branch in {branch for run in runs for branch in run}:
        seen = [run[branch].ratios for run in runs if branch in run]
        found[branch] = [sum(step) / len(step) for step in zip(*seen, strict=True)]
    return found


def masks(settings: MagCacheSettings, telemetry: Telemetry) -> Masks:
    """Return the steps that the rule would compute: the same in every call."""
    found = {branch: mask(seen, settings) for branch, seen in ratios(telemetry).items()}
    return [found] * len(telemetry.runs) if found else ()


def effect(work: Work, settings: MagCacheSettings, telemetry: Telemetry | None) -> Work:
    """Lower the share of all blocks to that of the computed steps, if telemetry tells them."""
    if telemetry is None:
        return with_residuals(work)
    found = masks(settings, telemetry)
    fitted = [{branch: stretched(one, steps_of(work)) for branch, one in run.items()}
              for run in found]  # fmt: skip
    return skipping_steps(work, computed_share(fitted))


def narrow(case: Case, telemetry: Telemetry | None) -> dict[str, Domain]:
    """Return the thresholds at which something changes, with steps in a row as by default."""
    if telemetry is None:
        return {}
    return narrowed("threshold", telemetry,
                    lambda value, seen: masks(MagCacheSettings(threshold=value), seen))  # fmt: skip


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
    masks=masks,
    calibrate=calibrate,
    apply=apply,
    observe=observe,
    narrow=narrow,
    seeds=({"threshold": 0.06, "start": 0.2}, {"threshold": 0.24, "most": 5, "start": 0.1}),
    batch_invariant=True,
)
