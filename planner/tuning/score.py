"""How an outcome stands to a goal: one objective, and the slack of every limit."""

from __future__ import annotations

from statistics import fmean, median

from planner.case.goal import Goal
from planner.case.noun import Noun
from planner.case.outcome import Failed, Measured, Outcome
from planner.trials.trial import Trial

AIM = 0.95
"""Share of the budget that the search aims at, so that the certificate's upper bound fits too."""


class Score(Noun):
    """Seconds and mean LPIPS of a plan, its objective, and per limit (measured - limit) / limit.

    A slack at or below zero means inside; that of latency is held against `AIM` of the budget.
    `objective` is None where it was not measured.
    """

    seconds: float
    lpips: float | None
    memory_bytes: int
    objective: float | None
    slack: dict[str, float]

    @property
    def feasible(self) -> bool:
        """Tell whether every limit was measured and holds, the budget with its margin (`AIM`)."""
        return self.objective is not None and all(value <= 0 for value in self.slack.values())

    @property
    def over(self) -> tuple[str, ...]:
        """Return the limits that were missed as they were asked for, without any margin."""
        margin = {"latency": 1 / AIM - 1}
        return tuple(name for name, by in self.slack.items() if by > margin.get(name, 0.0))

    @property
    def inside(self) -> bool:
        """Tell whether every limit was measured and holds as it was asked for."""
        return self.objective is not None and not self.over


def score(outcome: Measured, goal: Goal, reference_seconds: float) -> Score:
    """Hold a measured outcome against a goal.

    Seconds are the median ratio to the untouched call timed next to it, times the study's
    reference seconds: absolute times of different trials are not comparable on a busy machine.
    """
    seconds = median(outcome.ratios) * reference_seconds
    lpips = fmean(outcome.lpips) if outcome.lpips else None
    slack: dict[str, float] = {}
    if goal.budget_seconds is not None:
        slack["latency"] = seconds / (AIM * goal.budget_seconds) - 1
    if goal.vram_bytes is not None:
        slack["memory"] = outcome.memory_bytes / goal.vram_bytes - 1
    if goal.max_lpips is not None and lpips is not None:
        slack["lpips"] = lpips / goal.max_lpips - 1
    if lpips is None and (goal.max_lpips is not None or goal.by_quality):
        objective = None  # nothing may win that was never looked at
    else:
        objective = lpips if goal.by_quality else seconds
    return Score(seconds=seconds, lpips=lpips, memory_bytes=outcome.memory_bytes,
                 objective=objective, slack=slack)  # fmt: skip


def scored(trials: list[Trial], goal: Goal, reference: float) -> list[tuple[Trial, Score]]:
    """Return the measured trials with their scores, in order."""
    return [
        (trial, score(trial.outcome, goal, reference))
        for trial in trials if isinstance(trial.outcome, Measured)
    ]  # fmt: skip


def describe(outcome: Outcome, goal: Goal, reference: float) -> str:
    """Say in a few words how a trial went: seconds, LPIPS, or why it failed."""
    if isinstance(outcome, Failed):
        return f"failed at {outcome.stage}: {outcome.reason}"
    found = score(outcome, goal, reference)
    lpips = "not looked at" if found.lpips is None else f"{found.lpips:.4f}"
    early = f", stopped: {outcome.stopped_early}" if outcome.stopped_early else ""
    return f"{found.seconds:.2f} s, LPIPS {lpips}{early}"
