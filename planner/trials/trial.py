"""A plan that was tried, and how that ended."""

from typing import Literal

from planner.case.noun import Noun
from planner.case.outcome import Measured, Outcome
from planner.plans.plan import Plan

Origin = Literal["seed", "sampler", "neighbour", "bought"]


class Trial(Noun):
    """One plan with its outcome, who proposed it, and the wall seconds that it took.

    `number` counts from zero within a study; `origin` is seed (an expert plan), sampler,
    neighbour (of the best one so far), or bought (the winner less one pass); `predicted` is what
    was expected before the trial ran: seconds of a call, with low and high; empty where nothing
    was, as in older ledgers.
    """

    number: int
    plan: Plan
    outcome: Outcome
    origin: Origin
    seconds: float
    predicted: dict[str, float] = {}

    @property
    def measured(self) -> Measured | None:
        """Return the outcome if the plan could be measured, else None."""
        return self.outcome if isinstance(self.outcome, Measured) else None


class Skipped(Noun):
    """A plan that was not tried: even the optimistic end of its `predicted` seconds is too slow."""

    plan: Plan
    origin: Origin
    predicted: dict[str, float]
