"""Reuse what the block stack added, for as long as its input has barely changed.

What it does: follows the timestep-modulated input of the first block from step to step. Its
relative change, rescaled by a polynomial, is added up; below the threshold the whole stack is
skipped and what it last added (image and text tokens) is added again, above it the stack runs and
the sum starts at zero. The first and the last step always run, and so do those before `start`,
where the layout is settled. Every branch decides for itself.
When it helps: schedules of 16 steps and more; unlike a first-block cache, a skipped step runs no
block at all. The polynomial is fitted here, from one reference run, with the degree that predicts
left-out points best; unlike the paper's it is kept from falling, and goes on in proportion beyond
the fitted range, since a polynomial says nothing there. One that was published for this very
checkpoint may be asked for: it needs no reference run, and its size is added, whatever its sign.
What it costs: the calibration run, one scalar read a forward; a branch keeps the indicator and what
every block list has added.
When not: 8 steps or fewer; with another cache; coefficients of another checkpoint; with Animate,
whose face adapters read the stream between blocks.
Source: Liu et al. 2024 (TeaCache), arXiv 2411.19108, equations 4 to 7.
"""

from __future__ import annotations

from typing import Any, Literal

from planner.case.case import Case
from planner.case.model import Model
from planner.case.telemetry import Telemetry
from planner.case.work import Work
from planner.case.workload import Workload
from planner.catalog.teacache import published, unpublished
from planner.errors import TrialFailed
from planner.hooks.branches import PerBranch
from planner.hooks.changes import relative_change
from planner.hooks.clock import StepClock
from planner.hooks.curve import Curve, Rescaling, fit, magnitude
from planner.hooks.gate import Gate, pinned
from planner.hooks.modulation import INDICATORS, modulated_input
from planner.hooks.recorder import Forward
from planner.hooks.reuse import (
    READ,
    computed_share,
    long_enough,
    nothing_read_between,
    reused_none,
    skipping_steps,
    steps_of,
    with_residuals,
)
from planner.hooks.skipping import skipping
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


class TeaCacheSettings(Settings):
    """How much change may gather before the stack runs again, and from where on."""

    threshold: float = knob(
        0.2, "gathered relative change of the residual at which the stack runs again",
        low=0.02, high=1.5, log=True, least=0.0, most=100.0,
    )  # fmt: skip
    start: float = knob(
        0.2, "share of the schedule before which every step is computed", low=0.0, high=0.4,
        step=0.05, least=0.0, most=1.0,
    )  # fmt: skip
    coefficients: Literal["fitted", "published"] = knob(
        "fitted", "whose polynomial: fitted to these weights, or published for their checkpoint"
    )


class _TeaCache:
    """The paper's rule: every branch gathers the rescaled changes of its own indicator."""

    def __init__(self, settings: TeaCacheSettings, curve: Rescaling, clock: StepClock) -> None:
        self._settings, self._curve, self._clock = settings, curve, clock
        self._before: PerBranch[list[Any]] = PerBranch(list, clock)
        self._gates = PerBranch(lambda: Gate(settings.threshold), clock)

    def restart(self) -> None:
        """Forget the last call."""
        self._before.clear()
        self._gates.clear()

    def skips(self, branch: str, block: Any, args: Any, kwargs: Any) -> bool:
        """Tell whether the changes gathered since the last computed step are still few."""
        before, now = self._before[branch], modulated_input(block, args, kwargs)
        known = bool(before) and before[0].shape == now.shape
        held = not known or pinned(self._clock.step, self._clock.total, self._settings.start)
        change = 0.0 if held else self._curve(relative_change(now, before[0]))
        before[:] = [now]
        return self._gates[branch].skips(change, held)


_FIT = "fit them, with coefficients set to fitted"


def _rescaling(settings: TeaCacheSettings, context: Context) -> Rescaling:
    """Return the polynomial: a policy's own numbers before those that are published by now."""
    learned = context.artifact or {}
    if settings.coefficients == "published":
        return magnitude(learned.get("published") or _published(context.case.model))
    if "range" not in learned:
        raise TrialFailed("tea_cache has no artifact", stage="apply", value=None,
                          way_out="calibrate it on this pipeline first")  # fmt: skip
    return Curve.of(learned)


def _published(model: Model) -> list[float]:
    """Return this checkpoint's published coefficients. Raises `TrialFailed` where it has none."""
    table = published(model, "modulated_input")
    if table is None:
        raise TrialFailed(f"tea_cache needs {unpublished(model, 'modulated_input')}",
                          stage="apply", value=model.id, way_out=_FIT)  # fmt: skip
    return list(table.coefficients)


def unfit(case: Case, settings: TeaCacheSettings) -> str | None:
    """Answer a sentence if published coefficients are wanted and this checkpoint has none."""
    if settings.coefficients == "fitted" or published(case.model, "modulated_input"):
        return None
    return f"tea_cache needs {unpublished(case.model, 'modulated_input')}: {_FIT}"


def apply(pipeline: Any, settings: TeaCacheSettings, context: Context) -> Undo:
    """Put the rule on the block stack. Raises `TrialFailed` without a polynomial for it."""
    rule = _TeaCache(settings, _rescaling(settings, context), context.clock)
    return skipping(pipeline, rule, context.clock, context.statistics, "planner_tea_cache")


def probe(forward: Forward) -> Any:
    """Return the indicator, the first block's modulated input; None where no block was called."""
    if forward.block is None:
        return None
    return modulated_input(forward.block, forward.block_args, forward.block_kwargs)


def calibrate(
    pipeline: Any, settings: TeaCacheSettings, context: Context, reference: Reference
) -> Artifact:
    """Fit the rescaling polynomial to reference runs with all earlier passes on.

    Returns {"coefficients" (highest power first), "range" (of the indicator's change), "r2",
    "points"}. Published coefficients cost no run and are kept as {"published"}: the numbers that
    a policy was measured with.
    """
    if settings.coefficients == "published":
        return {"published": _published(context.case.model)}
    indicator, residual = points(reference.telemetry())
    if len(indicator) < 2:
        raise TrialFailed(f"tea_cache saw {len(indicator)} changes between steps",
                          stage="calibrate", value=len(indicator),
                          way_out="calibrate on a call of at least 3 steps")  # fmt: skip
    curve, r2 = fit(indicator, residual)
    return curve.as_artifact() | {"r2": r2, "points": len(indicator)}


def needed(artifact: Artifact, settings: TeaCacheSettings) -> Artifact:
    """Return the polynomial of these settings. Raises `TrialFailed` where it was not learned."""
    published = settings.coefficients == "published"
    names = ("published",) if published else ("coefficients", "range", "r2", "points")
    if names[0] not in artifact:
        raise TrialFailed(f"tea_cache has no {settings.coefficients} polynomial", stage="apply",
                          value=", ".join(artifact), way_out="calibrate it with these settings")
    return {name: artifact[name] for name in names if name in artifact}


def points(telemetry: Telemetry) -> tuple[list[float], list[float]]:
    """Return all changes of the indicator, and those of the residual next to them."""
    pairs = [
        (one.changes(), residual[branch].changes())
        for seen, residual in zip(
            telemetry.series("tea_cache"), telemetry.series("residual"), strict=True)
        for branch, one in seen.items()
    ]  # fmt: skip
    return [x for pair in pairs for x in pair[0]], [y for pair in pairs for y in pair[1]]


def masks(settings: TeaCacheSettings, telemetry: Telemetry) -> Masks:
    """Return the steps that the rule would compute in the recorded calls, with a fitted curve."""
    if not telemetry.series("tea_cache") or settings.coefficients == "published":
        return ()
    curve = fit(*points(telemetry))[0]
    held = [pinned(step, telemetry.steps, settings.start) for step in range(telemetry.steps)]
    return [
        {branch: Gate(settings.threshold).mask([curve(one) for one in series.changes()], held)
         for branch, series in seen.items()}
        for seen in telemetry.series("tea_cache")
    ]  # fmt: skip


def effect(work: Work, settings: TeaCacheSettings, telemetry: Telemetry | None) -> Work:
    """Lower the share of all blocks by the simulated hit rate; without telemetry only hold more."""
    watched = with_residuals(work, 0, 1)  # the indicator of the step before
    found = masks(settings, telemetry.at(steps_of(work))) if telemetry else ()
    return skipping_steps(watched, computed_share(found)) if found else with_residuals(watched)


def narrow(case: Case, telemetry: Telemetry | None) -> dict[str, Domain]:
    """Return the thresholds at which something changes in the recorded calls."""
    if telemetry is None:
        return {}
    return narrowed("threshold", telemetry.at(case.workload.steps),
                    lambda value, seen: masks(TeaCacheSettings(threshold=value), seen))  # fmt: skip


def observe(settings: TeaCacheSettings, statistics: Statistics, workload: Workload) -> str | None:
    """Answer a sentence if nothing was reused."""
    return reused_none("tea_cache", settings.threshold, statistics)


def _known_blocks(case: Case) -> str | None:
    first = case.model.traits.block_classes[:1]
    if first and first[0] in INDICATORS and case.model.traits.skippable:
        return None
    found = first[0] if first else case.model.traits.denoiser_class
    return f"tea_cache needs registered blocks with a known indicator; the first here is {found}"


_SOURCE = "Liu et al. 2024, arXiv 2411.19108"
_FEW = "skips nothing on 4-step models: ali-vilab/TeaCache#6, FLUX schnell"

PASS = Pass(
    name="tea_cache",
    family=Family.CACHING,
    stage=Stage.CACHE,
    fidelity=Fidelity.APPROXIMATE,
    source=_SOURCE,
    settings=TeaCacheSettings,
    owns=("denoiser.step_reuse",),
    needs=(
        Need(_known_blocks, _SOURCE),
        Need(nothing_read_between("tea_cache"), READ),
        Need(long_enough("tea_cache"), _FEW),
        one_denoiser("tea_cache"),
    ),
    effect=effect,
    probe=probe,
    masks=masks,
    calibrate=calibrate,
    needed=needed,
    apply=apply,
    observe=observe,
    narrow=narrow,
    unfit=unfit,
    seeds=({"threshold": 0.2, "start": 0.2}, {"threshold": 0.4, "start": 0.1}),
    batch_invariant=False,
)
