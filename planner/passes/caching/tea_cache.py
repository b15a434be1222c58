"""Reuse what the block stack added, for as long as its input has barely changed.

What it does: follows the timestep-modulated input of the first block from step to step. Its
relative change, rescaled by a polynomial, is added up; below the threshold the whole stack is
skipped and what it last added (image and text tokens) is added again, above it the stack runs and
the sum starts at zero. The first and the last step always run, and so do those before `start`,
where the layout is settled. Every branch decides for itself.
When it helps: schedules of 16 steps and more; unlike a first-block cache, a skipped step runs no
block at all. The polynomial is fitted here, from one reference run, with the degree that predicts
left-out points best; unlike the paper's it is kept from falling, and goes on in proportion beyond
the fitted range, since a polynomial says nothing there.
What it costs: the calibration run, one scalar read a forward, two residuals of memory a branch.
When not: 8 steps or fewer; with another cache; coefficients of another checkpoint; with Animate,
whose face adapters read the stream between blocks.
Source: Liu et al. 2024 (TeaCache), arXiv 2411.19108, equations 4 to 7.
"""

from __future__ import annotations

from typing import Any

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.case.work import Phase, Work
from planner.case.workload import Workload
from planner.errors import TrialFailed
from planner.hooks.blocks import Stack, Streams, denoiser_of
from planner.hooks.branches import PerBranch, Tally
from planner.hooks.changes import INDICATORS, Recording, modulated_input, relative_change
from planner.hooks.curve import Curve, fit
from planner.hooks.reuse import (
    READ,
    long_enough,
    nothing_read_between,
    reused_none,
    skipping_steps,
    with_residuals,
)
from planner.passes.base import (
    Artifact,
    Context,
    Domain,
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


def pinned(settings: TeaCacheSettings, step: int, total: int) -> bool:
    """Tell whether a step always runs: the first, the last, and those before `start`."""
    return step == 0 or step == total - 1 or step < settings.start * total - 1e-9


class _State:
    """One branch: the last indicator, the change gathered since, and what the stack added."""

    def __init__(self) -> None:
        self.indicator: Any = None
        self.gathered = 0.0
        self.added: list[Streams] | None = None


class _TeaCache:
    """The paper's rule on a block stack."""

    def __init__(self, settings: TeaCacheSettings, curve: Curve, context: Context) -> None:
        self._settings = settings
        self._curve = curve
        self._clock = context.clock
        self._branches = PerBranch(_State, context.clock)
        self._tally = Tally(context.statistics, context.clock)

    def restart(self) -> None:
        """Forget the last call."""
        self._branches.clear()
        self._tally.restart()

    def reuse(self, branch: str, head: Any, args: Any, kwargs: Any) -> list[Streams] | None:
        """Return what the stack last added, or None where it must run."""
        if not self._clock.running:  # nobody says where a call begins: nothing is safe to reuse
            return None
        state = self._branches[branch]
        now, before = modulated_input(head, args, kwargs), state.indicator
        state.indicator = now
        runs = pinned(self._settings, self._clock.step, self._clock.total)
        if not runs and state.added is not None:
            state.gathered += self._curve(relative_change(now, before))
            runs = not state.gathered < self._settings.threshold
        reused = None if runs else state.added
        if reused is None:
            state.gathered = 0.0
        self._tally.add(branch, computed=reused is None)
        return reused

    def computed(self, branch: str, added: list[Streams]) -> None:
        """Keep what the stack added."""
        if self._clock.running:
            self._branches[branch].added = added


def apply(pipeline: Any, settings: TeaCacheSettings, context: Context) -> Undo:
    """Put the rule on the block stack. Raises `TrialFailed` without a calibration's artifact."""
    if context.artifact is None:
        raise TrialFailed("tea_cache has no artifact", stage="apply", value=None,
                          way_out="calibrate it on this pipeline first")  # fmt: skip
    rule = _TeaCache(settings, Curve.of(context.artifact), context)
    stop = context.clock.on_reset(rule.restart)
    stack = Stack(denoiser_of(pipeline), rule, context.clock, "planner_tea_cache")

    def undo() -> None:
        stack.detach()
        stop()

    return undo


def calibrate(
    pipeline: Any, settings: TeaCacheSettings, context: Context, render: Render
) -> Artifact:
    """Fit the rescaling polynomial to one reference run with all earlier passes on.

    Returns {"coefficients" (highest power first), "range" (of the indicator's change), "r2",
    "points", "indicator" and "residual" (changes per branch and step)}.
    """
    with Recording(pipeline, context.clock) as recorder:
        render()
        telemetry = recorder.telemetry()
        indicator, residual = recorder.points()
    if len(indicator) < 2:
        raise TrialFailed(f"tea_cache saw {len(indicator)} changes between steps",
                          stage="calibrate", value=len(indicator),
                          way_out="calibrate on a call of at least 3 steps")  # fmt: skip
    curve, r2 = fit(indicator, residual)
    return curve.as_artifact() | {
        "r2": r2,
        "points": len(indicator),
        "indicator": {name: _short(pair[0]) for name, pair in telemetry.branches.items()},
        "residual": {name: _short(pair[1]) for name, pair in telemetry.branches.items()},
    }


def _short(changes: tuple[float, ...]) -> list[float]:
    return [float(f"{change:.6g}") for change in changes]


def simulate(
    settings: TeaCacheSettings, curve: Curve, indicator: tuple[float, ...], steps: int
) -> str:
    """Return the mask (1 computed, 0 reused) that the rule would choose for known changes.

    With another number of steps than recorded, a step's change is that of the stretch it covers.
    """
    wider = (len(indicator) + 1) / steps
    mask, gathered = "", 0.0
    for step in range(steps):
        if step:
            at = min(len(indicator) - 1, round((step - 0.5) * wider - 0.5))
            gathered += curve(indicator[max(0, at)] * wider)
        if pinned(settings, step, steps) or not gathered < settings.threshold:
            gathered = 0.0
            mask += "1"
        else:
            mask += "0"
    return mask


def _curve_of(telemetry: Telemetry) -> Curve:
    pairs = telemetry.branches.values()
    indicator = [change for pair in pairs for change in pair[0]]
    return fit(indicator, [change for pair in pairs for change in pair[1]])[0]


def effect(work: Work, settings: TeaCacheSettings, telemetry: Telemetry | None) -> Work:
    """Lower the share of all blocks by the simulated hit rate; without telemetry only hold more."""
    if telemetry is None or not telemetry.branches:
        return with_residuals(work)
    curve = _curve_of(telemetry)

    def share(phase: Phase) -> float | None:
        changes = telemetry.branches.get(phase.branch or "single")
        if not changes or not changes[0] or phase.calls < 1:
            return None
        mask = simulate(settings, curve, changes[0], round(phase.calls))
        return mask.count("1") / len(mask)

    return skipping_steps(work, share)


def narrow(case: Case, telemetry: Telemetry | None) -> dict[str, Domain]:
    """Return thresholds from the smallest that reuses anything to three computed steps in all."""
    if telemetry is None or not telemetry.branches:
        return {}
    curve = _curve_of(telemetry)
    longest = max((pair[0] for pair in telemetry.branches.values()), key=len)
    changes = sorted(curve(change) for change in longest)
    if not changes or changes[-1] <= 0:
        return {}
    low = max(changes[len(changes) // 10], changes[-1] / 1000)
    return {"threshold": Domain(low=low, high=max(sum(changes) / 3, 2 * low), log=True)}


def observe(settings: TeaCacheSettings, statistics: Statistics, workload: Workload) -> str | None:
    """Answer a sentence if nothing was reused."""
    return reused_none("tea_cache", settings.threshold, statistics)


def _known_blocks(case: Case) -> str | None:
    first = case.model.traits.block_classes[:1]
    if first and first[0] in INDICATORS and case.model.traits.skippable:
        return None
    found = first[0] if first else case.model.traits.denoiser_class
    return f"tea_cache needs one of the blocks {', '.join(INDICATORS)}; the first here is {found}"


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
    calibrate=calibrate,
    apply=apply,
    observe=observe,
    narrow=narrow,
    seeds=({"threshold": 0.2, "start": 0.2}, {"threshold": 0.4, "start": 0.1}),
    batch_invariant=False,
)
