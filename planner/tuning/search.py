"""The search: expert seeds, then the sampler, until time or trials run out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from planner.case.goal import Goal
from planner.case.outcome import Measured
from planner.case.telemetry import Telemetry
from planner.passes import registry
from planner.plans.graph import Graph
from planner.plans.plan import Plan
from planner.trials.trial import Origin, Skipped, Trial
from planner.tuning.choose import incumbent
from planner.tuning.experts import expert_plans
from planner.tuning.foresight import Foresight
from planner.tuning.noise import Noise
from planner.tuning.race import Limits, Race
from planner.tuning.score import describe
from planner.tuning.session import Progress, Session
from planner.tuning.space import space
from planner.tuning.study import Study

_BOUGHT_CALLS = 3
"""Calls on which the winner less one pass is measured: enough for a ratio, not for a verdict."""

_OVERTIME = 60.0
"""Seconds, besides ten untouched calls, that the last trial may take longer than is left."""

_LOCAL = 3
"""After the seeds every so-manieth plan is a neighbour of the best one, not the sampler's."""

_SKIPPED_IN_A_ROW = 5
"""Proposals of the sampler that may be skipped one after another before one is measured."""


class Search:
    """Runs trials for one goal inside a deadline; every outcome is told and written."""

    def __init__(
        self, session: Session, race: Race, graph: Graph, goal: Goal, noise: Noise,
        progress: Progress, foresight: Foresight | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:  # fmt: skip
        self.session, self.race, self.graph = session, race, graph
        self.goal, self.noise, self.progress = goal, noise, progress
        self.foresight, self._skipped_in_a_row, self._turn = foresight, 0, 0
        request = session.request
        case = graph.case
        variables = space(graph, case, request.domains, telemetry)
        self._plans = deque(
            expert_plans(request, graph, goal, variables, noise.reference_seconds, foresight)
        )
        self.study = Study(
            graph, variables, goal, noise.reference_seconds,
            sampler=request.sampler, seed=request.seed, startup=len(self._plans),
        )  # fmt: skip
        for trial in session.trials():
            self._learn(trial)
        for one in session.ledger.skipped():
            self.study.skip(one.plan, one.predicted["seconds"])

    def run(self, deadline: Callable[[], float]) -> str:
        """Try plans until `deadline` (seconds left) says stop; returns why the search ended."""
        slowest = 0.0
        while True:
            done = [t for t in self.session.trials() if t.origin != "bought"]
            if self.session.request.trials is not None and len(done) >= self.session.request.trials:
                return f"{len(done)} trials, as asked"
            left = deadline()
            if left < 0.5 * slowest:
                return "the search time is used up"
            plan, origin = self._next()
            if plan is None:
                return "every plan that the sampler proposes has been measured"
            slowest = max(slowest, self.attempt(plan, origin, left).seconds)

    def bought(self, winner: Plan, deadline: Callable[[], float]) -> None:
        """Measure the winner less each of its passes, on fewer prompts: what each one bought.

        A rest that the search stopped early or saw fail is measured once more; where `deadline`
        (seconds left) says stop, the others are left out.
        """
        for name in winner.names:
            rest = winner.without(name)
            if not rest.passes or self._known(rest) or self.graph.why_not(rest) is not None:
                continue
            if deadline() <= 0:
                self.progress.say(f"no time is left to measure what {name} and others bought")
                return
            self.attempt(rest, "bought", deadline())

    def _known(self, rest: Plan) -> bool:
        """Tell whether a plan was measured on enough calls, or asked for as `bought` before."""
        enough = min(_BOUGHT_CALLS, len(self.race.calls))
        tried = [trial for trial in self.session.trials() if trial.plan == rest]
        return any(
            t.origin == "bought" or (t.measured and len(t.measured.seconds) >= enough)
            for t in tried
        )

    def attempt(self, plan: Plan, origin: Origin, left: float) -> Trial:
        """Measure one plan and write it down; start and end are separate ledger lines.

        It may take the seconds that are `left` and somewhat more: what began is worth ending.
        """
        number = self.session.next_number
        foretold = self.foresight.predict(plan) if self.foresight else None
        predicted = foretold.figures if foretold else {}
        # Written before it runs: what a measurement is held against was not fitted to it.
        self.session.ledger.append(
            "start", {"number": number, "plan": str(plan), "predicted": predicted}
        )
        began = time.monotonic()
        left += _OVERTIME + 10 * self.noise.reference_seconds
        if origin == "bought":
            outcome = self.race.run(plan, self._unlimited(), calls=_BOUGHT_CALLS, left=left)
        else:
            outcome = self.race.run(plan, self._limits(), left=left)
        trial = Trial(number=number, plan=plan, outcome=outcome, origin=origin,
                      seconds=time.monotonic() - began, predicted=predicted)  # fmt: skip
        self.session.ledger.append("trial", trial.model_dump(mode="json"))
        self._learn(trial)
        said = describe(outcome, self.goal, self.noise.reference_seconds)
        before = f"predicted {foretold}, {'measured ' * bool(trial.measured)}" if foretold else ""
        self.progress.say(f"{number:3d}  {plan}: {before}{said}")
        return trial

    def _learn(self, trial: Trial) -> None:
        self.study.tell(trial)
        if self.foresight is not None:
            self.foresight.learn(trial)

    def best(self) -> str:
        """Describe the incumbent in one line."""
        found = incumbent(self.session.trials(), self.goal, self.noise.reference_seconds)
        if found is None:
            return "none inside the limits yet"
        trial, score = found
        lpips = "" if score.lpips is None else f", LPIPS {score.lpips:.3f}"
        return f"{trial.plan} ({score.seconds:.2f} s{lpips})"

    def _next(self) -> tuple[Plan | None, Origin]:
        """Return the next plan to measure, past those that cannot meet the budget."""
        while True:
            plan, origin = self._proposed()
            if plan is None or not self._skipped(plan, origin):
                return plan, origin

    def _proposed(self) -> tuple[Plan | None, Origin]:
        known = {trial.plan for trial in self.session.trials()}
        known |= {one.plan for one in self.session.ledger.skipped()}
        while self._plans:
            plan = self._plans.popleft()
            if plan not in known and plan.passes:
                return plan, "seed"
        self._turn += 1
        near = self._neighbour(known) if self._turn % _LOCAL == 0 else None
        return (near, "neighbour") if near else (self.study.ask(), "sampler")

    def _neighbour(self, known: set[Plan]) -> Plan | None:
        """Return a plan a small step from the best one, by the pass that knows its neighbours."""
        found = incumbent(self.session.trials(), self.goal, self.noise.reference_seconds)
        plan = found[0].plan if found else Plan()
        artifacts = self.session.artifacts(plan)
        for entry in plan.passes:
            near = registry.get(entry.name).neighbours
            learned = artifacts.get(entry.name, {})
            seen = self.session.recordings.before(plan, entry.name)
            for values in near(entry.parsed(), learned, seen) if near else ():
                moved = plan.replaced(entry.name, values)
                if moved not in known and self.graph.why_not(moved) is None:
                    return moved
        return None

    def _skipped(self, plan: Plan, origin: Origin) -> bool:
        """Skip a plan whose optimistic end misses the budget, and write that down; tell whether.

        Where the sampler has nothing else for a while, one is measured all the same: a predictor
        that is wrong shows only on what it rules out.
        """
        found = self.foresight.predict(plan) if self.foresight else None
        enough = origin == "sampler" and self._skipped_in_a_row >= _SKIPPED_IN_A_ROW
        if found is None or enough or not found.impossible(self.goal.budget_seconds):
            self._skipped_in_a_row = 0
            return False
        self._skipped_in_a_row += origin == "sampler"
        skipped = Skipped(plan=plan, origin=origin, predicted=found.figures)
        self.session.ledger.append("skipped", skipped.model_dump(mode="json"))
        self.study.skip(plan, found.seconds)
        self.progress.say(f"  –  {plan}: skipped: at best {found.low:.2f} s, predicted")
        return True

    def _unlimited(self) -> Limits:
        """Return limits that stop nothing: a plan less a pass is measured however slow it is."""
        reference = self.noise.reference_seconds
        return Limits(goal=Goal(), reference_seconds=reference, spread=self.noise.spread)

    def _limits(self) -> Limits:
        reference = self.noise.reference_seconds
        found = incumbent(self.session.trials(), self.goal, reference)
        best = found[0].outcome if found else None
        return Limits(
            goal=self.goal,
            reference_seconds=reference,
            spread=max(self.noise.spread, 0.02),
            best=best.lpips if isinstance(best, Measured) else (),
            best_seconds=found[1].seconds if found else None,
        )
