"""What a study expects a plan to take before it is measured, and how well it has expected so far.

Only the ratio to the untouched call is predicted: the roofline prices the plan's work and the
untouched one on the same device, and the study's own reference seconds make a time of it. Every
measured trial teaches: how much caches really skip, by which factor each pass misses the
roofline, and how wide the interval must be. What a trial is compared with was fixed before it ran.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp, log, sqrt
from statistics import median
from typing import NamedTuple

import numpy as np

from planner.case.noun import Noun
from planner.case.telemetry import Series, Telemetry
from planner.case.work import Operation, Phase, Work
from planner.errors import UsageError
from planner.hooks.branches import SINGLE
from planner.hooks.reuse import steps_of
from planner.passes import registry
from planner.passes.base import Settings
from planner.plans.plan import Plan, PlannedPass
from planner.prediction.roofline import Speeds, Table, price
from planner.trials.trial import Trial
from planner.tuning.footing import Footing
from planner.tuning.recordings import Recordings
from planner.tuning.shares import Shares, measured_share

FEWEST = 3
"""Measured trials on which a prediction must rest before a plan is skipped for it."""

_REUSE = "denoiser.step_reuse"
_COMPILER = "compile_blocks"
_RIDGE = 1.0
"""How strongly a pass's correction is held at none, in trials: one trial moves it by half."""

_RECENT = 8
"""Predictions on whose errors the interval rests: earlier ones knew less."""

_INSIDE = 0.95
"""Confidence that a plan is not faster than the optimistic end; the same for the other one."""

_FOUR_OF_FIVE = 1.2816
"""Standard deviations that hold four of five, as the fit's spread does."""


class Prediction(Noun):
    """Seconds of a call foretold before it is measured; `low` and `high` hold nine of ten.

    `rests_on` counts the measured trials behind it, zero where the plan has a cache that has not
    run in this study.
    """

    seconds: float
    low: float
    high: float
    rests_on: int = 0

    def impossible(self, budget: float | None) -> bool:
        """Tell whether even the optimistic end misses the budget, on enough experience."""
        return budget is not None and self.rests_on >= FEWEST and self.low > budget

    @property
    def figures(self) -> dict[str, float]:
        """Return what a ledger keeps of it."""
        return self.model_dump(include={"seconds", "low", "high"})

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s ({self.low:.2f}–{self.high:.2f})"


class _Lesson(NamedTuple):
    """One measured trial: its passes, and the log of measured over what the roofline says."""

    names: tuple[str, ...]
    missed: float


class Foresight:
    """Predicts plans of one study and learns from its trials, in their order."""

    def __init__(
        self, footing: Footing, reference_seconds: float, recordings: Recordings | None = None
    ) -> None:
        """Take what the untouched call computes and takes, and what steps showed to caches."""
        self._footing, self._reference = footing, reference_seconds
        self._recordings = recordings or Recordings()
        self._eager = explained(footing.eager, footing.work, reference_seconds)
        self._compiled = explained(footing.compiled, footing.work, reference_seconds)
        self._untouched = _seconds(footing.work, self._eager)
        self._steps = steps_of(footing.work)
        self._shares = Shares()
        self._lessons: list[_Lesson] = []
        self._errors: list[float] = []

    def learn(self, trial: Trial) -> None:
        """Take in a finished trial; a failed one teaches nothing about time."""
        if trial.measured is None:
            return
        ratio = median(trial.measured.ratios)
        foretold = trial.predicted.get("seconds")
        if foretold:
            self._errors.append(log(ratio * self._reference / foretold))
        shares: dict[str, float] = {}
        for name, settings, steps in self._caches(trial.plan):
            share = measured_share(name, trial.measured)
            if share is not None:
                self._shares.learn(name, settings, steps, share)
                shares[name] = share
        priced = self._ratio(trial.plan, shares)
        if priced is not None:
            self._lessons.append(_Lesson(trial.plan.names, log(ratio / priced)))

    def predict(self, plan: Plan) -> Prediction | None:
        """Return what the plan will take, None where the device's speeds do not price it."""
        expected = {name: self._shares.expect(name, settings, steps)
                    for name, settings, steps in self._caches(plan)}  # fmt: skip
        ends = [
            self._ratio(plan, {name: share[end] for name, share in expected.items()})
            for end in range(3 if expected else 1)  # what is exact has one end
        ] * (1 if expected else 3)
        if None in ends:
            return None
        usual = exp(self._correction(plan)) * self._reference
        least, middle, most = (usual * end for end in ends if end is not None)
        wide = exp(self._half_width(plan))
        known = all(self._shares.knows(name) for name in expected)
        return Prediction(seconds=middle, low=least / wide, high=most * wide,
                          rests_on=len(self._lessons) if known else 0)  # fmt: skip

    def beyond(self, plan: Plan, budget: float | None) -> float:
        """Return the seconds by which a plan should miss the budget; none if it may be inside."""
        found = self.predict(plan)
        return 0.0 if budget is None or found is None else max(0.0, found.seconds - budget)

    def _caches(self, plan: Plan) -> list[tuple[str, Settings, float]]:
        """Return the passes whose skipped steps only their trials show, and the steps they see.

        One whose steps are known before the run says so by its effect, which is then exact; so
        does one that telemetry simulates.
        """
        found = [one for one in plan.passes if _REUSE in registry.get(one.name).owns
                 and not self._is_exact(plan, one)]  # fmt: skip
        if not found:
            return []
        steps = steps_of(self._work(plan, {})) / self._steps if self._steps else 1.0
        return [(one.name, one.parsed(), steps) for one in found]

    def _is_exact(self, plan: Plan, one: PlannedPass) -> bool:
        found, work = registry.get(one.name), self._footing.work
        seen = self._recordings.before(plan, one.name)
        if seen is not None and found.masks:
            return bool(found.masks(one.parsed(), seen))
        after = found.effect(work, one.parsed(), None)
        return after.computed_forwards < work.computed_forwards

    def _work(self, plan: Plan, shares: dict[str, float]) -> Work:
        work = self._footing.work
        for one in plan.passes:
            effect, settings = registry.get(one.name).effect, one.parsed()
            if one.name in shares:
                least = effect(work, settings, _still(work, one.name))
                work = _reused(work, least, shares[one.name])
            else:
                work = effect(work, settings, self._recordings.before(plan, one.name))
        return work

    def _ratio(self, plan: Plan, shares: dict[str, float]) -> float | None:
        """Return the roofline's share of the untouched call, None without the unit it needs."""
        speeds = self._compiled if _COMPILER in plan else self._eager
        try:
            return _seconds(self._work(plan, shares), speeds) / self._untouched
        except UsageError:
            return None

    def _correction(self, plan: Plan) -> float:
        """Return the log of the factor by which plans with these passes miss the roofline.

        Ridge regression on which passes stood in a trial: what always stands together shares it.
        """
        names = sorted({name for lesson in self._lessons for name in lesson.names})
        if not names:
            return 0.0
        rows = np.array([[float(name in one.names) for name in names] for one in self._lessons])
        missed = np.array([one.missed for one in self._lessons])
        held = rows.T @ rows + _RIDGE * np.eye(len(names))
        factors = np.linalg.solve(held, rows.T @ missed)
        return float(sum(factor for name, factor in zip(names, factors, strict=True)
                         if name in plan))  # fmt: skip

    def _half_width(self, plan: Plan) -> float:
        """Return the log of the interval's factor: past errors, and the fit's where few are known.

        A pass that no trial has shown yet brings the fit's error once more.
        """
        from scipy.special import stdtrit

        first = (log(self._footing.spread) / _FOUR_OF_FIVE) ** 2
        errors = self._errors[-_RECENT:]
        spread = (first + sum(error**2 for error in errors)) / (1 + len(errors))
        shown = {name for lesson in self._lessons for name in lesson.names}
        if errors and not shown.issuperset(plan.names):
            spread += first
        return float(stdtrit(2 + len(errors), _INSIDE)) * sqrt(spread)


def compared(trials: Iterable[Trial], reference: float) -> list[tuple[Trial, float, float]]:
    """Return every measured trial that was foretold, with predicted and measured seconds."""
    return [
        (trial, trial.predicted["seconds"], median(trial.measured.ratios) * reference)
        for trial in trials if trial.measured and "seconds" in trial.predicted
    ]  # fmt: skip


def rank_correlation(trials: Sequence[Trial], reference: float) -> float | None:
    """Return Spearman's rank correlation of predicted and measured seconds; None below three."""
    from scipy.stats import spearmanr

    pairs = compared(trials, reference)
    predicted, measured = [one[1] for one in pairs], [one[2] for one in pairs]
    if len(set(predicted)) < 3 or len(set(measured)) < 3:
        return None
    return float(spearmanr(predicted, measured).statistic)


def explained(speeds: Speeds, work: Work, reference: float) -> Speeds:
    """Return the speeds with kernels that start as slowly as the untouched call shows.

    A CPU starts its kernels itself, with Python between them: what a call takes beyond the
    roofline is spread over its launches. On a GPU that time hides behind the device's.
    """
    missing = reference - _seconds(work, speeds)
    launches = sum(
        phase.calls * op.launches * op.share for phase in work.phases for op in phase.operations
    )
    if speeds.launch > 0 or missing <= 0 or launches <= 0:
        return speeds
    return speeds.model_copy(update={"ramp": speeds.ramp + missing / launches})


def _seconds(work: Work, speeds: Speeds) -> float:
    return float(price(Table.of([work]), [speeds]).total[0])


def _still(work: Work, cache: str) -> Telemetry:
    """Return the telemetry of a call whose latents move, and nothing else that a cache sees."""
    steps = steps_of(work)
    rows = tuple((0.0,) * step for step in range(steps))
    series = Series(sizes=(1.0,) * steps, apart=rows, ratios=(1.0,) * max(0, steps - 1),
                    products=tuple((1.0,) * (step + 1) for step in range(steps)))  # fmt: skip
    moving = series.model_copy(update={"apart": tuple((1.0,) * step for step in range(steps))})
    seen = dict.fromkeys(("output", "residual", cache), series) | {"latents": moving}
    branches = {phase.branch or SINGLE for phase in work.phases if phase.name == "denoise"}
    run = {branch: seen for branch in sorted(branches)}
    return Telemetry(places=tuple(float(step) for step in range(steps)), runs=(run,))


def _reused(work: Work, still: Work, share: float) -> Work:
    """Return the work whose denoiser, or block stack, runs at a share of the calls.

    `still` is what the cache leaves where nothing changes: what it runs even then, such as the
    block that it watches, runs at every call.
    """

    def less(op: Operation, least: Operation) -> Operation:
        runs = not op.block or least.share >= op.share
        return op if runs else op.model_copy(update={"share": op.share * share})

    def cached(phase: Phase, least: Phase) -> Phase:
        if least.calls < phase.calls:
            return phase.model_copy(update={"calls": phase.calls * share})
        pairs = zip(phase.operations, least.operations, strict=True)
        return phase.model_copy(update={"operations": tuple(less(*pair) for pair in pairs)})

    pairs = zip(work.phases, still.phases, strict=True)
    return work.model_copy(update={"phases": tuple(cached(*pair) for pair in pairs)})
