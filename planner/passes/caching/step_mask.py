"""Compute the denoiser at chosen steps only, and forecast what it gives at the others.

What it does: reference runs show how all steps lie to each other; from that follows, without
another forward, at which steps the denoiser is best computed, for any number of them. At the others
its output is the last computed one, or lies on a straight line through the last two over the noise
level; or its block stack alone is skipped, and what that adds is forecast; or each of a few groups
of blocks has steps of its own, more of them where it changes sooner. An output that is kept makes
Euler's method take one step from each computed level to the next, which aligns the schedule to the
mask; along a line, and for solvers that look back, forecasts enter at the schedule's own levels.
What is settled early carries all that follows, so that errors count more at high noise.
When it helps: long schedules; wherever latency must not depend on the prompt: the steps are known
before the run, nothing is compared, the host waits for nothing, and graphs can be captured. Where
the output is forecast any denoiser will do, U-Nets too, and a skipped step costs next to nothing.
What it costs: one output a branch, or two at order 1; of a residual as much for every block list,
of groups for every group; reference runs, again after a change of steps, precision or scheduler.
When not: order 1 on quantized layers, whose noise a line draws out; prompts that differ much in
when their images change; 8 steps or fewer; a residual with Animate, whose face adapters read the
stream between blocks.
Source: static schedules as in SmoothCache (arXiv 2411.10510) and the step masks of cache-dit;
forecasts as in TaylorSeer (arXiv 2503.06923). Finding the steps by dynamic programming over the
residuals' inner products is planner's own.
"""

from __future__ import annotations

from itertools import count, product
from typing import Any, Literal

from pydantic import field_validator

from planner.case.case import Case
from planner.case.noun import Scalar
from planner.case.telemetry import Telemetry, group_residual
from planner.case.work import Phase, Work
from planner.case.workload import Workload
from planner.errors import TrialFailed
from planner.hooks.geometry import Matrix, best_masks, error_of, forecast_errors, gram, weighed
from planner.hooks.groups import skipping_groups_of
from planner.hooks.masks import BETWEEN, computed_in, is_mask, moved, stretched
from planner.hooks.reuse import (
    known_blocks,
    long_enough,
    nothing_read_between,
    reused_none,
    skipping_forwards,
    skipping_steps,
)
from planner.hooks.skipping import Masked, in_group, skipping, skipping_groups
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
from planner.passes.needs import one_denoiser

ORDERS = (0, 1)
TENSORS = ("output", "residual", "groups")
EARLY = (0.0, 0.5, 1.0)
_FEWEST = 3
"""Computed steps at the least: fewer leave nothing of the trajectory."""


class StepMaskSettings(Settings):
    """How many steps are computed, and how the others are forecast."""

    share: float = knob(
        0.3, "share of the steps that are computed", low=0.1, high=0.8, step=0.02,
        least=0.0, most=1.0,
    )  # fmt: skip
    order: int = knob(
        1, "forecast from the last computed value (0), or along the last two (1)", choices=ORDERS,
        least=0, most=1,
    )  # fmt: skip
    tensor: Literal["output", "residual", "groups"] = knob(
        "output", "what is forecast: the denoiser's output, so that it is not called at all, what "
        "its block stack adds, or what each of a few groups of blocks adds", choices=TENSORS,
    )  # fmt: skip
    early: float = knob(
        0.5, "power of the noise level by which an error counts more when the steps are chosen",
        choices=EARLY, least=0.0, most=10.0,
    )  # fmt: skip
    mask: str = knob("", "the steps themselves, 1 computed and 0 skipped, in place of share and "
                     "early: one character a step, the first one 1; of groups one mask each, "
                     "with | between")  # fmt: skip

    @field_validator("mask")
    @classmethod
    def _is_mask(cls, mask: str) -> str:
        if mask and not is_mask(mask):
            raise ValueError("a mask is made of 1 and 0, begins with 1 and skips something; "
                             "those of groups are alike long, with | between")  # fmt: skip
        return mask


def computed_steps(settings: StepMaskSettings, steps: int) -> float:
    """Return how many of a schedule's steps are computed, of groups in the mean: never all."""
    if settings.mask:
        return computed_in(settings.mask, steps)
    return max(min(_FEWEST, steps), min(steps - 1, round(settings.share * steps)))


def apply(pipeline: Any, settings: StepMaskSettings, context: Context) -> Undo:
    """Put the mask on. Raises `TrialFailed` without a calibration's artifact or mask setting."""
    if context.artifact is None and not settings.mask:
        raise TrialFailed("step_mask has no artifact", stage="apply", value=None,
                          way_out="calibrate it on this pipeline first")  # fmt: skip
    mask = settings.mask or chosen(context.artifact or {}, settings)
    choices = [Masked({"": part}, context.clock) for part in mask.split(BETWEEN)]
    name, order = "planner_step_mask", settings.order
    if settings.tensor == "groups":
        return skipping_groups(pipeline, choices, context.clock, context.statistics, name, order)
    return skipping(pipeline, choices[0], context.clock, context.statistics, name, order,
                    whole=around(settings))  # fmt: skip


def around(settings: StepMaskSettings) -> bool:
    """Tell whether the denoiser is not called at all at a skipped step."""
    return settings.tensor == "output"


def _key(settings: StepMaskSettings) -> str:
    return f"{settings.tensor}, order {settings.order}, early {settings.early:g}"


def chosen(artifact: Artifact, settings: StepMaskSettings) -> str:
    """Return the mask whose steps are nearest in number. Raises `TrialFailed` without any."""
    masks: dict[str, list[str]] = artifact.get("masks", {})
    known = masks.get(_key(settings), [])
    if not known:
        raise TrialFailed(f"step_mask has no masks for {_key(settings)}", stage="apply",
                          value=", ".join(masks),
                          way_out="calibrate it with these settings")  # fmt: skip
    steps = len(known[0].partition(BETWEEN)[0])
    wanted = computed_steps(settings, steps)
    return min(known, key=lambda one: abs(computed_in(one, steps) - wanted))


def needed(artifact: Artifact, settings: StepMaskSettings) -> Artifact:
    """Return the one mask of these settings: a reviewer reads which steps are computed."""
    return {} if settings.mask else {"masks": {_key(settings): [chosen(artifact, settings)]}}


def calibrate(
    pipeline: Any, settings: StepMaskSettings, context: Context, reference: Reference
) -> Artifact:
    """Find the best steps for every number of them, from reference runs with earlier passes on.

    Returns {"masks": by tensor, order and early, one string a number of computed steps}.
    """
    seen = reference.telemetry()
    found = {}
    for tensor, order in product(TENSORS, ORDERS):
        asked = StepMaskSettings(tensor=tensor, order=order)
        unweighed = _forecast_errors(seen, asked)  # the same whatever counts more
        for early in {*EARLY, settings.early} if unweighed else ():
            best = best_masks([weighed(one, seen.places, early) for one in unweighed])
            key = _key(asked.model_copy(update={"early": early}))
            found[key] = [best[one] for one in range(min(_FEWEST, seen.steps), seen.steps)]
    return {"masks": found}


def errors_of(telemetry: Telemetry, settings: StepMaskSettings) -> list[Matrix]:
    """Return how far off each forecast of the recorded calls would be: see `hooks.geometry`."""
    found = _forecast_errors(telemetry, settings)
    return [weighed(one, telemetry.places, settings.early) for one in found]


def _forecast_errors(telemetry: Telemetry, settings: StepMaskSettings) -> list[Matrix]:
    """Return one matrix, or one a group of blocks; none where what is forecast was not shown."""
    names = map(group_residual, count()) if settings.tensor == "groups" else [settings.tensor]
    found = []
    for name in names:
        grams = [gram(series) for run in telemetry.series(name) for series in run.values()]
        if not grams:
            break
        found.append(forecast_errors(grams, telemetry.places, settings.order))
    return found


def _parts(settings: StepMaskSettings, telemetry: Telemetry) -> list[str]:
    """Return the mask, or that of each group; none where telemetry does not tell."""
    steps, mask = telemetry.steps, settings.mask
    if not mask:
        best = best_masks(errors_of(telemetry, settings))
        mask = best.get(round(computed_steps(settings, steps)), "")
    return [stretched(part, steps) for part in mask.split(BETWEEN) if part]


def masks(settings: StepMaskSettings, telemetry: Telemetry) -> Masks:
    """Return the steps that are computed: the same in every call and branch."""
    parts = _parts(settings, telemetry)
    if settings.tensor != "groups":
        return [dict.fromkeys(run, parts[0]) for run in telemetry.runs if parts]
    return [{in_group(branch, index): part for branch in run for index, part in enumerate(parts)}
            for run in telemetry.runs if parts]  # fmt: skip


def effect(work: Work, settings: StepMaskSettings, telemetry: Telemetry | None) -> Work:
    """Lower the calls, or the share of all blocks, to the computed steps; hold what they gave."""

    def share(phase: Phase) -> float | None:
        steps = round(phase.calls)
        return computed_steps(settings, steps) / steps if steps else None

    if around(settings):
        return skipping_forwards(work, share)
    if settings.tensor != "groups":
        return skipping_steps(work, share, settings.order + 1)

    def shares(phase: Phase) -> list[float]:
        known = _parts(settings, telemetry.at(round(phase.calls))) if telemetry else []
        mean = share(phase)
        return [part.count("1") / len(part) for part in known] or [one for one in [mean] if one]

    return skipping_groups_of(work, shares, settings.order + 1)


def unfit(case: Case, settings: StepMaskSettings) -> str | None:
    """Answer a sentence for a mask of another length, and for blocks that cannot be skipped."""
    steps, (mask, *more) = case.workload.steps, settings.mask.split(BETWEEN)
    if mask and len(mask) != steps:
        return (f"step_mask has a mask of {len(mask)} steps and this call has {steps}; "
                "give one character a step, or a share instead")  # fmt: skip
    if more and settings.tensor != "groups":
        return (f"step_mask has {len(more) + 1} masks and forecasts the {settings.tensor}; "
                "give one mask, or forecast groups of blocks (tensor: groups)")  # fmt: skip
    said = None
    if not around(settings):
        said = known_blocks("step_mask")(case) or nothing_read_between("step_mask")(case)
    return said and f"{said}; forecast the output instead (tensor: output)"


def narrow(case: Case, telemetry: Telemetry | None) -> dict[str, Domain]:
    """Return the output alone where no block stack can be skipped."""
    return {} if case.model.traits.skippable else {"tensor": Domain(choices=("output",))}


def neighbours(
    settings: StepMaskSettings, artifact: Artifact, telemetry: Telemetry | None
) -> list[dict[str, Scalar]]:
    """Return every mask in which one computed step lies one or two steps earlier or later.

    Those that telemetry expects to be nearest come first. None where nothing was calibrated.
    """
    if not settings.mask and _key(settings) not in artifact.get("masks", {}):
        return []
    parts = (settings.mask or chosen(artifact, settings)).split(BETWEEN)
    found = [[*parts[:at], new, *parts[at + 1 :]]
             for at, part in enumerate(parts) for new in moved(part)]  # fmt: skip
    if telemetry is not None and telemetry.steps == len(parts[0]):
        of = errors_of(telemetry, settings)
        if len(of) == len(parts):
            found.sort(key=lambda new: sum(map(error_of, of, new)))
    return [settings.model_dump() | {"mask": BETWEEN.join(one)} for one in found]


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
        Need(long_enough("step_mask"), "interactions R14: step caches off at 8 steps and fewer"),
        one_denoiser("step_mask"),
    ),
    effect=effect,
    masks=masks,
    calibrate=calibrate,
    needed=needed,
    apply=apply,
    observe=observe,
    unfit=unfit,
    around=around,
    narrow=narrow,
    neighbours=neighbours,
    # A line through two values also draws out the noise of a number format: without one as well.
    seeds=({"share": 0.24, "order": 1}, {"share": 0.3, "order": 0}, {"share": 0.16, "order": 1}),
    batch_invariant=True,
)
