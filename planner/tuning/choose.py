"""Which measured plans go to the certificate, in which order; and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, stdev

from planner.case.goal import Goal
from planner.plans.plan import Plan
from planner.trials.trial import Trial
from planner.tuning.certify import alpha_each
from planner.tuning.request import CERTIFY_PROMPTS
from planner.tuning.score import Score, scored

FINALISTS = 3
"""At most this many plans are tested on unseen prompts: each one more costs confidence."""

_ROOM = {"latency": 0.07, "memory": 0.07, "lpips": 0.2}
"""Slack that the third finalist is expected to have: six prompts tell little of the others."""


def incumbent(trials: Sequence[Trial], goal: Goal, reference: float) -> tuple[Trial, Score] | None:
    """Return the best complete trial that meets every limit, or None."""
    found = _complete(trials, goal, reference)
    return min(found, key=_objective, default=None)


def finalists(
    trials: Sequence[Trial], goal: Goal, reference: float, *, n: int = CERTIFY_PROMPTS,
    openings: int = 1,
) -> tuple[Plan, ...]:  # fmt: skip
    """Return at most three plans: the best, the best that should pass, the best with room to.

    What a plan's bound on `n` unseen images will be is foretold from its own spread; the safest
    plan stands in where none has room. The order is fixed here, before any certification prompt
    is rendered: testing stops at the first plan whose bounds all hold.
    """
    found = sorted(_complete(trials, goal, reference), key=_objective)
    level = alpha_each(FINALISTS, goal, openings)
    slack = {trial.number: _foretold(trial, score, goal, n, level) for trial, score in found}
    promising = [t for t, _ in found if max(slack[t.number].values(), default=0.0) <= 0]
    roomy = [t for t in promising if all(by <= -_ROOM[k] for k, by in slack[t.number].items())]
    safest = sorted((t for t, _ in found), key=lambda t: max(slack[t.number].values(), default=0.0))
    order = [*(t for t, _ in found[:1]), *promising[:1], *roomy[:1], *safest[:1],
             *(t for t, _ in found)]  # fmt: skip
    return tuple(dict.fromkeys(trial.plan for trial in order))[:FINALISTS]


def _foretold(trial: Trial, score: Score, goal: Goal, n: int, level: float) -> dict[str, float]:
    """Return a plan's slacks with LPIPS at the bound that `n` images are likely to give."""
    from scipy.special import stdtrit

    values = trial.measured.lpips if trial.measured else ()
    if goal.max_lpips is None or len(values) < 2:
        return score.slack
    reach = float(stdtrit(n - 1, 1 - level)) * stdev(values) / sqrt(n)
    return score.slack | {"lpips": (fmean(values) + reach) / goal.max_lpips - 1}


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
