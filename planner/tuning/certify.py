"""Tests finalists on prompts the search never saw, in an order fixed beforehand.

Each finalist is rendered beside the untouched call, round by round; its one-sided bounds on the
median ratio (distribution-free) and the mean LPIPS (Johnson's skew-corrected t) are taken at
alpha / (openings x finalists x limits), so that the joint error stays below alpha.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, median

from planner.case.goal import Goal
from planner.case.noun import Noun
from planner.case.prompts import Prompt, Sample
from planner.measure.statistics import mean_upper, median_upper
from planner.plans.plan import Plan

ALPHA = 0.05
ROUNDS = 10
"""The fewest interleaved rounds for a verdict on latency."""


class Bound(Noun):
    """One limit's figure, its upper bound at the test's level, the limit, and whether it holds."""

    value: float
    upper: float
    limit: float
    holds: bool


class Verdict(Noun):
    """How one finalist did: bounds per limit, rounds seen, and why it stopped where it did."""

    plan: Plan
    passed: bool
    bounds: dict[str, Bound]
    n: int
    alpha_each: float
    stopped_early: str | None = None


class Rounds(Noun):
    """The calls of one finalist and of the untouched pipeline beside it, in order."""

    candidate: tuple[Sample, ...]
    baseline: tuple[Sample, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Return candidate over untouched seconds for every round."""
        return tuple(
            c.seconds / b.seconds for c, b in zip(self.candidate, self.baseline, strict=True)
        )

    @property
    def lpips(self) -> tuple[float, ...]:
        """Return the distance of every image, in prompt order."""
        return tuple(value for sample in self.candidate for value in sample.lpips)


def alpha_each(finalists: int, goal: Goal, openings: int) -> float:
    """Return the level of a single test."""
    return ALPHA / (max(1, openings) * max(1, finalists) * max(1, len(goal.constraints)))


def bounds(rounds: Rounds, goal: Goal, reference: float, level: float) -> dict[str, Bound]:
    """Return value, upper bound and verdict for every limit of the goal."""
    found: dict[str, Bound] = {}
    if goal.budget_seconds is not None:
        ratios = rounds.ratios
        found["latency"] = _bound(
            median(ratios) * reference, median_upper(ratios, 1 - level) * reference,
            goal.budget_seconds,
        )  # fmt: skip
    if goal.vram_bytes is not None:
        peak = float(max(sample.memory_bytes for sample in rounds.candidate))
        found["memory"] = _bound(peak, peak, goal.vram_bytes)
    if goal.max_lpips is not None:
        values = rounds.lpips
        found["lpips"] = _bound(fmean(values), mean_upper(values, 1 - level), goal.max_lpips)
    return found


def _bound(value: float, upper: float, limit: float) -> Bound:
    # A bound that too few rounds cannot give is infinite; nouns hold finite numbers only.
    finite = min(upper, 1e9)
    return Bound(value=value, upper=finite, limit=limit, holds=finite <= limit)


def hopeless(rounds: Rounds, goal: Goal, reference: float) -> str | None:
    """Say why a finalist cannot pass any more, or None. Stopping early only costs certificates."""
    n = len(rounds.candidate)
    if n < ROUNDS:
        return None
    if goal.max_lpips is not None and fmean(rounds.lpips) > goal.max_lpips:
        return f"mean LPIPS {fmean(rounds.lpips):.3f} after {n} rounds is over the cap"
    budget = goal.budget_seconds
    if budget is not None and median(rounds.ratios) * reference > budget:
        return f"median {median(rounds.ratios) * reference:.2f} s after {n} rounds is over budget"
    return None


def certify(
    plan: Plan,
    calls: Sequence[tuple[Prompt, ...]],
    goal: Goal,
    reference: float,
    level: float,
    play: Callable[[Plan, tuple[Prompt, ...], int], tuple[Sample, Sample]],
) -> tuple[Verdict, Rounds]:
    """Test one finalist on every certification call.

    `play` renders one round and returns its candidate and its untouched sample.
    """
    candidate: list[Sample] = []
    baseline: list[Sample] = []
    stopped = None
    for index, call in enumerate(calls):
        ours, untouched = play(plan, call, index)
        candidate.append(ours)
        baseline.append(untouched)
        rounds = Rounds(candidate=tuple(candidate), baseline=tuple(baseline))
        stopped = hopeless(rounds, goal, reference)
        if stopped is not None:
            break
    found = bounds(rounds, goal, reference, level)
    passed = stopped is None and all(bound.holds for bound in found.values())
    verdict = Verdict(plan=plan, passed=passed, bounds=found, n=len(rounds.lpips),
                      alpha_each=level, stopped_early=stopped)  # fmt: skip
    return verdict, rounds
