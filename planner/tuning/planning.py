"""Plans for a device that is not here: the ladder of a model, and the policy that it ends in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import planner
from planner.case.case import Case
from planner.case.evidence import Expected, LadderStep, Prediction, Quantity
from planner.case.goal import Goal
from planner.case.noun import Noun
from planner.catalog.devices import Card, card
from planner.errors import NoPlanMeetsGoal
from planner.plans.graph import build
from planner.plans.plan import Plan
from planner.policy.claim import Provenance
from planner.policy.file import PolicyFile
from planner.policy.summary import asked
from planner.prediction.meta import work_of
from planner.prediction.speeds import FITTED
from planner.tuning.ladder import Planner
from planner.tuning.policies import commit
from planner.tuning.request import goal_of
from planner.tuning.rungs import Ladder, Rung
from planner.tuning.target import case_on
from planner.units import format_bytes, format_seconds


class Planned(Noun):
    """What planner recommends on a device that is not here, all of it predicted.

    `price` is dollars an hour, None where nobody states one; `excluded` says of every pass that
    is not legal there why, and `exclusions` in one line each.
    """

    case: Case
    card: Card
    goal: Goal
    ladder: Ladder
    price: float | None
    excluded: dict[str, str]
    exclusions: tuple[str, ...]

    def usd_per_1000(self, rung: Rung) -> float | None:
        """Return dollars for a thousand calls on a rung, None without a price."""
        return None if self.price is None else rung.seconds * self.price / 3.6

    def policy(self, command: str = "") -> PolicyFile:
        """Return the last rung as a policy of status predicted.

        Raises `NoPlanMeetsGoal` where the ladder does not reach the goal.
        """
        if not self.ladder.meets:
            raise NoPlanMeetsGoal(
                f"no plan is predicted to meet the goal ({asked(self.goal)}) on {self.card.name}; "
                f"{self._nearest()}",
                way_out="raise the budget, or give a device with more memory or speed",
            )
        versions = dict(self.case.device.libraries)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return PolicyFile.of(
            Plan.of(self.ladder.last.passes), status="predicted", goal=self.goal, case=self.case,
            prediction=prediction(self.ladder),
            provenance=Provenance(planner=planner.__version__, time=now, command=command,
                                  commit=commit(), versions=versions),
        )  # fmt: skip

    def _nearest(self) -> str:
        last = self.ladder.last
        if last.lacks:
            return f"{last.plan} lacks {format_bytes(last.lacks)}"
        return f"{last.plan} takes {format_seconds(last.seconds)}; {self.ladder.floor_said}"


def plan(
    model: str, *, target: str, budget: str | None = None, vram: str | None = None,
    price: float | None = None, without_passes: Sequence[str] = (), dtype: str | None = None,
    **sizes: Any,
) -> Planned:  # fmt: skip
    """Predict which passes to adopt for a model on a catalogued device, in which order.

    Nothing is loaded, downloaded or measured. `budget` ("2s") and `vram` ("12GiB") are the goal;
    `price` is dollars an hour, else the catalogue's; `dtype` the number format, else the model's
    own. `sizes` are height, width, frames, steps,
    guidance, text_tokens and batch. Raises `UsageError` for an unknown model, device, pass or
    size, `InvalidFile` for a broken config.
    """
    device = card(target)
    goal = goal_of(budget, vram, "none")
    graph = build(case_on(model, device, dtype, **sizes), without=tuple(without_passes))
    ladder = Planner(graph, work_of(model, dtype, **sizes), device, goal).climb()
    return Planned(
        case=graph.case, card=device, goal=goal, ladder=ladder,
        price=device.price if price is None else price,
        excluded=graph.excluded, exclusions=graph.exclusions,
    )  # fmt: skip


def prediction(ladder: Ladder) -> Prediction:
    """Return what supports the last rung of a ladder."""
    first, last = ladder.rungs[0], ladder.last
    steps = (LadderStep(rung=one.name, plan=one.plan, seconds=_short(one.seconds))
             for one in ladder.rungs)  # fmt: skip
    return Prediction(
        baseline=_seconds(first), tuned=_seconds(last),
        memory_baseline=Quantity(value=round(first.memory), unit="bytes"),
        memory_tuned=Quantity(value=round(last.memory), unit="bytes"),
        rests_on=last.rests_on, quality=last.quality, ladder=tuple(steps),
        fit=hashlib.sha256(FITTED.read_bytes()).hexdigest(),
    )  # fmt: skip


def _seconds(rung: Rung) -> Expected:
    low, high = _short(rung.low), _short(rung.high)
    return Expected(value=_short(rung.seconds), low=low, high=high, unit="s")


def _short(seconds: float) -> float:
    """Return four digits: more would claim what no prediction has."""
    return float(f"{seconds:.4g}")
