"""Which measured plans go to the certificate, in which order; and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence

from planner.case.goal import Goal
from planner.plans.plan import Plan
from planner.trials.trial import Trial
from planner.tuning.score import Score, scored

FINALISTS = 3
"""At most this many plans are tested on unseen prompts: each one more costs confidence."""

_MARGIN = 0.07
"""Slack that the second finalist must have in every limit."""


def incumbent(trials: Sequence[Trial], goal: Goal, reference: float) -> tuple[Trial, Score] | None:
    """Return the best complete trial that meets every limit, or None."""
    found = _complete(trials, goal, reference)
    return min(found, key=_objective, default=None)


def finalists(trials: Sequence[Trial], goal: Goal, reference: float) -> tuple[Plan, ...]:
    """Return at most three plans: the best, the best with a margin, and the safest.

    The order is fixed here, before any certification prompt is rendered: testing stops at the
    first plan whose bounds all hold.
    """
    found = _complete(trials, goal, reference)
    if not found:
        return ()
    roomy = [pair for pair in found if _tightest(pair[1]) <= -_MARGIN]
    order = [
        min(found, key=_objective),
        min(roomy or found, key=_objective),
        min(found, key=lambda pair: _tightest(pair[1])),
        *sorted(found, key=_objective),
    ]
    plans = list(dict.fromkeys(trial.plan for trial, _ in order))
    return tuple(plans[:FINALISTS])


def front(trials: Sequence[Trial], goal: Goal, reference: float) -> tuple[Trial, ...]:
    """Return the trials that no other beats in both seconds and mean LPIPS, fastest first."""
    seen = [(t, s) for t, s in scored(list(trials), goal, reference) if s.lpips is not None]
    best, kept = float("inf"), []
    for trial, found in sorted(seen, key=lambda pair: (pair[1].seconds, pair[1].lpips)):
        if found.lpips is not None and found.lpips < best:
            best = found.lpips
            kept.append(trial)
    return tuple(kept)


def fastest(trials: Sequence[Trial], goal: Goal, reference: float) -> tuple[Trial, Score] | None:
    """Return the fastest measured trial whatever its quality: what is said when none is good."""
    return min(scored(list(trials), goal, reference), key=lambda p: p[1].seconds, default=None)


def _complete(
    trials: Sequence[Trial], goal: Goal, reference: float
) -> list[tuple[Trial, Score]]:
    """Return whole trials inside the limits: with the budget's margin, or else without it."""
    whole = [
        (trial, found)
        for trial, found in scored(list(trials), goal, reference)
        if found.inside and trial.origin != "bought"
        and getattr(trial.outcome, "stopped_early", None) is None
    ]  # fmt: skip
    return [pair for pair in whole if pair[1].feasible] or whole


def _objective(pair: tuple[Trial, Score]) -> tuple[float, int]:
    objective = pair[1].objective
    return (float("inf") if objective is None else objective, len(pair[0].plan.passes))


def _tightest(found: Score) -> float:
    return max(found.slack.values(), default=-1.0)
