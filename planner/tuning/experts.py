"""The plans with which a search begins, before its sampler has seen anything."""

from __future__ import annotations

from planner.case.goal import Goal
from planner.plans.graph import Graph
from planner.plans.plan import Plan
from planner.plans.seeds import seeds
from planner.tuning.estimate import estimate
from planner.tuning.foresight import Foresight
from planner.tuning.request import TuneRequest
from planner.tuning.space import Space, fitted


def expert_plans(
    request: TuneRequest, graph: Graph, goal: Goal, variables: Space, reference: float,
    foresight: Foresight | None = None,
) -> list[Plan]:  # fmt: skip
    """Return the expert plans that a search tries first: moved into its domains, and legal there.

    Those that are foretold to meet the budget come first, in the order in which people adopt
    techniques, then the others by how near they come to it. At most half of the trials that fit
    the time; the rest is the sampler's.
    """
    case = graph.case
    moved = dict.fromkeys(fitted(plan, variables) for plan in seeds(graph, case, goal))
    legal = [plan for plan in moved if graph.why_not(plan) is None]
    if foresight is not None:
        legal.sort(key=lambda plan: foresight.beyond(plan, goal.budget_seconds))
    fit = estimate(request, reference, case.workload.batch_size)["trials_that_fit"]
    return legal[: max(4, round(min(fit, request.trials or fit) / 2))]
