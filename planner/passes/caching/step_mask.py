"""Compute the denoiser at chosen steps only, and forecast what it gives at the others.

What it does: reference runs show how all steps lie to each other; from that follows, without
another forward, at which steps the denoiser is best computed, for any number of them. At the others
its output is the last computed one, or lies on a straight line through the last two over the noise
level (the same as a solver of that order that takes the computed steps alone, so the sigma schedule
is aligned to the mask by itself); or its block stack alone is skipped, and what that adds is
forecast. What is settled early carries all that follows, so that errors count more at high noise.
When it helps: long schedules; wherever latency must not depend on the prompt: the steps are known
before the run, nothing is compared, the host waits for nothing, and graphs can be captured. Where
the output is forecast any denoiser will do, U-Nets too, and a skipped step costs next to nothing.
What it costs: one or two outputs (residuals) of memory a branch; reference runs, again after a
change of steps, precision or scheduler.
When not: order 1 on quantized layers, whose noise a line draws out; prompts that differ much in
when their images change; 8 steps or fewer; a residual with Animate, whose face adapters read the
stream between blocks.
Source: static schedules as in SmoothCache (arXiv 2411.10510) and the step masks of cache-dit;
forecasts as in TaylorSeer (arXiv 2503.06923). Finding the steps by dynamic programming over the
residuals' inner products is planner's own.
"""

from __future__ import annotations

from itertools import product
from typing import Any, Literal

from pydantic import field_validator

from planner.case.case import Case
from planner.case.noun import Scalar
from planner.case.telemetry import Telemetry
from planner.case.work import Phase, Work
from planner.case.workload import Workload
from planner.errors import TrialFailed
from planner.hooks.geometry import Matrix, error_of, errors, gram
from planner.hooks.geometry import masks as masks_of
from planner.hooks.reuse import (
    known_blocks,
    long_enough,
    nothing_read_between,
    reused_none,
    skipping_forwards,
    skipping_steps,
)
from planner.hooks.skipping import Masked, skipping, stretched
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
TENSORS = ("output", "residual")
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
    tensor: Literal["output", "residual"] = knob(
        "output", "what is forecast: the denoiser's output, so that it is not called at all, or "
        "what its block stack adds", choices=TENSORS,
    )  # fmt: skip
    early: float = knob(
        0.5, "power of the noise level by which an error counts more when the steps are chosen",
        choices=EARLY, least=0.0, most=10.0,
    )  # fmt: skip
    mask: str = knob("", "the steps themselves, 1 computed and 0 skipped, in place of share and "
                     "early: one character a step, the first one 1")  # fmt: skip

    @field_validator("mask")
    @classmethod
    def _is_mask(cls, mask: str) -> str:
        if mask and (set(mask) - {"0", "1"} or mask[0] != "1" or "0" not in mask):
            raise ValueError("a mask is made of 1 and 0, begins with 1 and skips something")
        return mask


def computed_steps(settings: StepMaskSettings, steps: int) -> int:
    """Return how many of a schedule's steps are computed: not all, which would be no cache."""
    if settings.mask:
        return stretched(settings.mask, steps).count("1")
    return max(min(_FEWEST, steps), min(steps - 1, round(settings.share * steps)))


def apply(pipeline: Any, settings: StepMaskSettings, context: Context) -> Undo:
    """Put the mask on. Raises `TrialFailed` without a calibration's artifact or mask setting."""
    if context.artifact is None and not settings.mask:
        raise TrialFailed("step_mask has no artifact", stage="apply", value=None,
                          way_out="calibrate it on this pipeline first")  # fmt: skip
    mask = settings.mask or chosen(context.artifact or {}, settings)
    return skipping(pipeline, Masked({"": mask}, context.clock), context.clock,
                    context.statistics, "planner_step_mask", settings.order,
                    whole=around(settings))  # fmt: skip


def around(settings: StepMaskSettings) -> bool:
    """Tell whether the denoiser is not called at all at a skipped step."""
    return settings.tensor == "output"


def _key(settings: StepMaskSettings) -> str:
    return f"{settings.tensor}, order {settings.order}, early {settings.early:g}"


def chosen(artifact: Artifact, settings: StepMaskSettings) -> str:
    """Return the mask with the wanted number of steps, else the one whose number is nearest.

    Raises `TrialFailed` where the artifact was made for other settings.
    """
    masks: dict[str, list[str]] = artifact.get("masks", {})
    known = masks.get(_key(settings), [])
    if not known:
        raise TrialFailed(f"step_mask has no masks for {_key(settings)}", stage="apply",
                          value=", ".join(masks),
                          way_out="calibrate it with these settings")  # fmt: skip
    wanted = computed_steps(settings, len(known[0]))
    return min(known, key=lambda one: abs(one.count("1") - wanted))


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
    for tensor, order, early in product(TENSORS, ORDERS, EARLY):
        if seen.series(tensor):
            asked = StepMaskSettings(tensor=tensor, order=order, early=early)
            best = masks_of(errors_of(seen, asked))
            found[_key(asked)] = [best[count] for count in range(
                min(_FEWEST, seen.steps), seen.steps)]  # fmt: skip
    return {"masks": found}


def errors_of(telemetry: Telemetry, settings: StepMaskSettings) -> Matrix:
    """Return how far off each forecast of the recorded calls would be: see `hooks.geometry`."""
    runs = telemetry.series(settings.tensor)
    grams = [gram(series) for run in runs for series in run.values()]
    return errors(grams, telemetry.places, settings.order, settings.early)


def masks(settings: StepMaskSettings, telemetry: Telemetry) -> Masks:
    """Return the steps that are computed: the same in every call and branch."""
    if settings.mask:
        mask = stretched(settings.mask, telemetry.steps)
    else:
        best = masks_of(errors_of(telemetry, settings))
        mask = best[computed_steps(settings, telemetry.steps)]
    return [dict.fromkeys(run, mask) for run in telemetry.runs]


def effect(work: Work, settings: StepMaskSettings, telemetry: Telemetry | None) -> Work:
    """Lower the calls, or the share of all blocks, to the computed steps; hold what they gave."""

    def share(phase: Phase) -> float | None:
        steps = round(phase.calls)
        return computed_steps(settings, steps) / steps if steps else None

    if around(settings):
        return skipping_forwards(work, share)
    return skipping_steps(work, share, settings.order + 1)


def unfit(case: Case, settings: StepMaskSettings) -> str | None:
    """Answer a sentence for a mask of another length, and for blocks that cannot be skipped."""
    steps = case.workload.steps
    if settings.mask and len(settings.mask) != steps:
        return (f"step_mask has a mask of {len(settings.mask)} steps and this call has {steps}; "
                "give one character a step, or a share instead")  # fmt: skip
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
    mask = settings.mask or chosen(artifact, settings)
    moved = []
    for step in (i for i, one in enumerate(mask) if one == "1" and i):
        for other in (step - 1, step + 1, step - 2, step + 2):
            if 0 < other < len(mask) and mask[other] == "0":
                new = list(mask)
                new[step], new[other] = "0", "1"
                moved.append("".join(new))
    if telemetry is not None and telemetry.steps == len(mask):
        expected = errors_of(telemetry, settings)
        moved.sort(key=lambda one: error_of(expected, one))
    return [settings.model_dump() | {"mask": one} for one in moved]


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
