"""The only room that speaks Optuna: ask for a plan, tell what came out.

One objective with normalised constraints, each set exactly once on every outcome: Optuna ignores
a second value and takes a trial without constraints for feasible. The study lives in memory and
is rebuilt from the ledger; what was measured is never kept in Optuna alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from planner.case.goal import Goal
from planner.case.noun import Noun
from planner.case.outcome import Failed, Measured
from planner.errors import PlannerError
from planner.passes.base import Domain
from planner.plans.graph import Graph
from planner.plans.plan import Plan
from planner.trials.trial import Trial
from planner.tuning.score import AIM, Score, score
from planner.tuning.space import Space, decode, encode, within

if TYPE_CHECKING:
    import optuna

Sampler = Literal["gp", "tpe"]
_TRIES = 40
"""Asks in a row that may give only measured plans before random ones are tried."""

_RANDOM = 400
"""Random plans that may all be measured before the space counts as exhausted."""


class Told(Noun):
    """What the sampler was told about a trial; `imputed` values were not measured."""

    value: float
    constraints: dict[str, float]
    imputed: bool = False


class Study:
    """Proposes plans for a goal and learns from every outcome, failures included."""

    def __init__(
        self, graph: Graph, variables: Space, goal: Goal, reference_seconds: float,
        *, sampler: Sampler = "gp", seed: int = 0, startup: int = 8,
    ) -> None:  # fmt: skip
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.graph, self.variables, self.goal = graph, variables, goal
        self.reference_seconds = reference_seconds
        self._distributions = {name: _distribution(d) for name, d in variables.items()}
        self._study = optuna.create_study(
            direction="minimize", sampler=_sampler(sampler, seed, startup)
        )
        self._trials: dict[Plan, Trial] = {}
        self._skipped: dict[Plan, Told] = {}

    def ask(self) -> Plan | None:
        """Return a legal plan that was neither measured nor skipped, or None where none is left."""
        for _ in range(_TRIES):
            trial = self._study.ask(self._distributions)
            plan = decode(trial.params, self.graph)
            known = self._known(plan)
            if known is None:
                # The sampled values are told again by `tell`, as a finished trial: until then the
                # open one would count as running and repel the sampler for good.
                self._forget(trial, plan)
                return plan
            self._finish(trial, known)
        return self._stumbled_on()

    def _known(self, plan: Plan) -> Told | None:
        """Return what the sampler knows of a plan already; the empty one is the untouched call."""
        if not plan.passes:
            return self._baseline()
        trial = self._trials.get(plan)
        return self._told(trial) if trial else self._skipped.get(plan)

    def _stumbled_on(self) -> Plan | None:
        """Return a random plan that has not been measured: a sampler may repeat itself for good."""
        import optuna

        sampler = optuna.samplers.RandomSampler(seed=len(self._trials))
        study = optuna.create_study(sampler=sampler)
        for _ in range(_RANDOM):
            plan = decode(study.ask(self._distributions).params, self.graph)
            if self._known(plan) is None:
                return plan
        return None

    def tell(self, trial: Trial) -> None:
        """Record one finished trial under the encoding of its plan."""
        self._trials[trial.plan] = trial
        self._add(trial.plan, self._told(trial))

    def skip(self, plan: Plan, seconds: float) -> None:
        """Record a plan that is too slow by its prediction: the budget missed, all imputed."""
        self._skipped[plan] = skipped(seconds, self.goal, self.reference_seconds, self.trials)
        self._add(plan, self._skipped[plan])

    def _add(self, plan: Plan, told: Told) -> None:
        import optuna

        params = encode(plan, self.graph, self.variables)
        if not within(params, self.variables):
            return  # kept in the ledger, but outside what this search may propose
        self._study.add_trial(optuna.trial.create_trial(
            params=params, distributions=self._distributions, value=told.value,
            constraints=told.constraints,
            user_attrs={"plan": str(plan), "imputed": told.imputed},
        ))  # fmt: skip

    @property
    def trials(self) -> Sequence[Trial]:
        """Return the trials told so far, in order."""
        return tuple(self._trials.values())

    def _told(self, trial: Trial) -> Told:
        return told(trial, self.goal, self.reference_seconds, self.trials)

    def _baseline(self) -> Told:
        """Describe the untouched pipeline: no distance, over the budget by what it takes."""
        budget = self.goal.budget_seconds
        over = (self.reference_seconds - budget) / budget if budget else 0.0
        value = 0.0 if self.goal.by_quality else self.reference_seconds
        limits = dict.fromkeys(self.goal.constraints, 0.0)
        return Told(value=value, constraints={"failed": -1.0} | limits
                    | ({"latency": over} if budget else {}))  # fmt: skip

    def _finish(self, trial: optuna.Trial, told: Told) -> None:
        for key, value in told.constraints.items():
            trial.set_constraint(key, value)
        self._study.tell(trial, told.value)

    def _forget(self, trial: optuna.Trial, plan: Plan) -> None:
        import optuna

        trial.set_user_attr("plan", str(plan))
        self._study.tell(trial, state=optuna.trial.TrialState.FAIL)


def told(trial: Trial, goal: Goal, reference: float, others: Sequence[Trial]) -> Told:
    """Translate an outcome for the sampler: finite values, every constraint exactly once.

    What was not measured is imputed as the worst feasible value so far, and marked.
    """
    if isinstance(trial.outcome, Failed):
        worst = _worst(others, goal, reference)
        limits = dict.fromkeys(goal.constraints, 0.0)
        return Told(value=worst, constraints={"failed": 1.0} | limits, imputed=True)
    found = score(trial.outcome, goal, reference)
    constraints = {"failed": -1.0} | {name: found.slack.get(name, 0.0) for name in goal.constraints}
    value = found.objective
    imputed = value is None or any(name not in found.slack for name in goal.constraints)
    return Told(value=_worst(others, goal, reference) if value is None else value,
                constraints=constraints, imputed=imputed)  # fmt: skip


def skipped(seconds: float, goal: Goal, reference: float, others: Sequence[Trial]) -> Told:
    """Translate a prediction that misses the budget; nothing of it was measured."""
    limits = dict.fromkeys(goal.constraints, 0.0)
    if goal.budget_seconds is not None:
        limits["latency"] = seconds / (AIM * goal.budget_seconds) - 1
    value = _worst(others, goal, reference) if goal.by_quality else seconds
    return Told(value=value, constraints={"failed": -1.0} | limits, imputed=True)


def _worst(trials: Sequence[Trial], goal: Goal, reference: float) -> float:
    scores: list[Score] = [
        score(trial.outcome, goal, reference)
        for trial in trials if isinstance(trial.outcome, Measured)
    ]  # fmt: skip
    seen = [s for s in scores if s.objective is not None]
    inside = [s for s in seen if s.feasible]
    return max((s.objective for s in inside or seen if s.objective is not None), default=1.0)


def _sampler(name: Sampler, seed: int, startup: int) -> optuna.samplers.BaseSampler:
    import optuna

    if name == "gp":
        with warnings.catch_warnings():
            # GPSampler's constraint support is announced as experimental in some 4.x releases.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)


def _distribution(domain: Domain) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if domain.choices is not None:
        return CategoricalDistribution(domain.choices)
    if domain.low is None or domain.high is None:
        raise PlannerError(
            f"a search domain needs both ends, this one has {domain.low}..{domain.high}",
            value=domain, way_out="give `low` and `high` in the search file",
        )  # fmt: skip
    if domain.integer:
        return IntDistribution(
            int(domain.low), int(domain.high), log=domain.log, step=int(domain.step or 1)
        )
    return FloatDistribution(domain.low, domain.high, log=domain.log, step=domain.step)

