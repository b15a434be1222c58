"""Measures one plan against the untouched call timed next to it; stops one that has lost.

Latency is probed before quality: one steady call beside one untouched call is enough to drop a
plan that misses the budget by more than the noise. Quality is compared prompt by prompt with the
best plan so far, on the same prompts and seeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import inf, sqrt
from statistics import fmean, stdev

from planner.case.goal import Goal
from planner.case.hit_rate import by_pass, reused
from planner.case.noun import Noun
from planner.case.outcome import Failed, Measured, Outcome
from planner.case.prompts import Prompt, Sample, by_call
from planner.errors import TrialFailed
from planner.passes.base import Artifact
from planner.plans.plan import Plan
from planner.trials.protocol import Put, Which
from planner.trials.supervisor import Supervisor
from planner.tuning.recorded import reference_prompts

_LOST = 0.95
"""Confidence at which a plan counts as worse than the best one or the cap."""

_VISIBLE = 0.002
"""LPIPS by which a plan must lie behind the best one: less is no reason to stop it."""


class Limits(Noun):
    """What a candidate is raced against: goal, reference seconds, timing noise, best so far.

    `spread` is the relative noise of one timed call; `best` the incumbent's per-prompt LPIPS and
    `best_seconds` its latency.
    """

    goal: Goal
    reference_seconds: float
    spread: float
    best: tuple[float, ...] = ()
    best_seconds: float | None = None


class Race:
    """Runs trials in one worker; `learned` is told what every plan's calibrations returned."""

    def __init__(
        self,
        worker: Supervisor,
        prompts: Sequence[Prompt],
        artifacts: Callable[[Plan], dict[str, Artifact]],
        learned: Callable[[Plan, Put], None],
    ) -> None:
        self.calls = by_call(prompts, worker.case.workload.batch_size)
        self._worker, self._artifacts, self._learned = worker, artifacts, learned

    def run(
        self, plan: Plan, limits: Limits, calls: int | None = None, *, left: float = inf
    ) -> Outcome:
        """Measure one plan on the first `calls` calls, or all; a failure is a `Failed` outcome.

        A plan that is not done when the `left` seconds are over has failed too, by timeout.
        """
        until = time.monotonic() + left
        try:
            return self._run(plan, limits, self.calls[:calls], until)
        except TrialFailed as error:
            return Failed(stage=error.stage, reason=error.what, evidence=str(error.value or ""))

    def put(
        self, plan: Plan, reference_seconds: float, *, as_deployed: bool = False,
        until: float = inf,
    ) -> Put:  # fmt: skip
        """Put a plan on in the worker, calibrating what has not been calibrated."""
        deadline = _within(300 + 10 * reference_seconds, until)
        # Warmed on the last call: the first timed one must meet a prompt that no cache has seen.
        put = self._worker.put(
            plan, self._artifacts(plan), reference_prompts(self.calls), deadline,
            as_deployed=as_deployed,
        )  # fmt: skip
        self._learned(plan, put)
        return put

    def _run(
        self, plan: Plan, limits: Limits, calls: list[tuple[Prompt, ...]], until: float
    ) -> Outcome:
        def render(which: Which, call: tuple[Prompt, ...]) -> list[Sample]:
            deadline = _within(60 + 6 * limits.reference_seconds, until)
            return self._worker.render(which, call, deadline, save=which == "candidate")

        put = self.put(plan, limits.reference_seconds, until=until)
        before = render("baseline", calls[0])
        samples = render("candidate", calls[0])
        lost = _too_slow(samples[0].seconds / before[0].seconds, limits)
        for call in calls[1:] if lost is None else ():
            samples += render("candidate", call)
            lost = _too_far(samples, limits)
            if lost is not None:
                break
        # A plan that already lost is not worth another untouched call.
        after = before if lost else render("baseline", calls[-1])
        return _measured(put, samples, before[0].seconds, after[0].seconds, lost)


def _within(seconds: float, until: float) -> float:
    """Return the seconds that a request may take, fewer where `until` comes before."""
    return max(1.0, min(seconds, until - time.monotonic()))


def _measured(
    put: Put, samples: Sequence[Sample], before: float, after: float, lost: str | None
) -> Measured:
    last = max(1, len(samples) - 1)
    beside = [before + (after - before) * i / last for i in range(len(samples))]
    return Measured(
        seconds=tuple(sample.seconds for sample in samples),
        ratios=tuple(s.seconds / b for s, b in zip(samples, beside, strict=True)),
        lpips=tuple(value for sample in samples for value in sample.lpips),
        memory_bytes=max(sample.memory_bytes for sample in samples),
        first_call_seconds=put.first_call_seconds,
        apply_seconds=put.apply_seconds,
        statistics=samples[-1].statistics,
        hit_rates=by_pass([reused(sample.statistics) for sample in samples]),
        stopped_early=lost,
    )


def _too_slow(ratio: float, limits: Limits) -> str | None:
    """Say why one timed pair is enough to drop a plan, or None."""
    optimistic = ratio * limits.reference_seconds * (1 - 3 * limits.spread)
    budget = limits.goal.budget_seconds
    if budget is not None and optimistic > budget:
        return f"at best {optimistic:.2f} s, over the budget"
    best = limits.best_seconds
    if not limits.goal.by_quality and best is not None and optimistic > best:
        return f"at best {optimistic:.2f} s, slower than the best"
    return None


def _too_far(samples: Sequence[Sample], limits: Limits) -> str | None:
    """Say why the images seen so far are enough to drop a plan, or None."""
    seen = [value for sample in samples for value in sample.lpips]
    cap = limits.goal.max_lpips
    if cap is not None and _surely_above(seen, cap):
        return f"LPIPS {fmean(seen):.3f} after {len(seen)} prompts, over the cap"
    if limits.goal.by_quality and limits.best:
        behind = [a - b for a, b in zip(seen, limits.best, strict=False)]
        if _surely_above(behind, _VISIBLE):
            return f"LPIPS behind the best by {fmean(behind):.3f} after {len(seen)} prompts"
    return None


def _surely_above(values: Sequence[float], limit: float) -> bool:
    """Tell whether a one-sided t bound puts the mean above the limit; needs three values."""
    if len(values) < 3:
        return False
    from scipy.stats import t

    half = float(t.ppf(_LOST, len(values) - 1)) * stdev(values) / sqrt(len(values))
    return fmean(values) - half > limit
