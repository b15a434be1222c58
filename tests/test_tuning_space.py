"""Search domains: what a person may narrow, and that the sampler and every plan keep to them."""

import pytest

from planner.case.goal import Goal
from planner.case.outcome import Measured
from planner.errors import UsageError
from planner.passes.base import Domain
from planner.plans.graph import Graph, build
from planner.plans.plan import Plan
from planner.plans.seeds import seeds
from planner.trials.trial import Trial
from planner.tuning import study as studies
from planner.tuning.prepare import prepare
from planner.tuning.space import encode, fitted, space, within
from planner.tuning.study import Study
from tests.cases import flux_case

GOAL = Goal(budget_seconds=2.0, max_lpips=0.1)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return build(flux_case(), without=("compile_blocks", "int8_dynamic"))


@pytest.mark.parametrize(
    ("domains", "said"),
    [({"stepss": {}}, "unknown pass 'stepss'"), ({"steps": {"count": {}}}, "unknown setting"),
     ({"steps": {"num_inference_steps": {"low": 30, "high": 20}}}, "is empty: 30 to 20"),
     ({"int8_dynamic": {"scope": {"choices": ["block"]}}}, "scope cannot be 'block'"),
     ({"steps": {"num_inference_steps": {"choices": [10.5]}}}, "cannot be 10.5"),
     ({"steps": {"num_inference_steps": {"step": 1.5}}}, "whole numbers, and 1.5 is none"),
     ({"prompt_embedding_cache": {"entries": {"low": 16}}}, "entries has one end only"),
     ({"prompt_embedding_cache": {"entries": {"low": 1, "high": 6.5}}}, "and 6.5 is none"),
     ({"tea_cache": {"threshold": {"low": 0}}}, "begins at 0 on a log scale"),
     ({"tea_cache": {"threshold": {"step": 0.1}}}, "has a step of 0.1 on a log scale")],
)  # fmt: skip
def test_domains_that_no_plan_can_follow_are_refused_before_anything_runs(
    domains: dict[str, dict[str, dict[str, object]]], said: str
) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        prepare({"budget": "2s", "domains": domains})
    assert caught.value.way_out


def test_expert_plans_are_moved_into_the_domains() -> None:
    variables = {"steps.num_inference_steps": Domain(low=20, high=40, integer=True),
                 "int8_dynamic.scope": Domain(choices=("attention", "blocks"))}  # fmt: skip
    plan = Plan.of({"steps": {"num_inference_steps": 12}, "int8_dynamic": {"scope": "blocks"}})
    moved = fitted(plan, variables)
    assert str(moved) == str(Plan.of({"steps": {"num_inference_steps": 20},
                                      "int8_dynamic": {"scope": "blocks"}}))  # fmt: skip
    assert fitted(moved, variables) == moved


def test_a_step_makes_a_grid_that_seeds_are_moved_to_and_others_are_not_told(
    graph: Graph,
) -> None:
    variables = space(graph, graph.case, {"steps": {"num_inference_steps": {"step": 5}}})
    domain = variables["steps.num_inference_steps"]
    assert domain.low is not None and domain.high is not None
    assert (domain.high - domain.low) % 5 == 0, "the sampler would lower it with a warning"
    off = Plan.of({"steps": {"num_inference_steps": 25}})
    assert not within(encode(off, graph, variables), variables)
    moved = fitted(off, variables)
    assert moved == Plan.of({"steps": {"num_inference_steps": 24}})
    study = Study(graph, variables, GOAL, 5.0)
    for number, plan in enumerate((off, *(fitted(p, variables) for p in seeds(
        graph, graph.case, GOAL
    )))):
        study.tell(trial(number, plan))
    assert study.ask() is not None


def test_a_sampler_that_repeats_itself_does_not_end_the_search(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(graph, space(graph, graph.case), GOAL, 5.0)
    monkeypatch.setattr(studies, "_TRIES", 0)  # as though all of them had been measured
    plan = study.ask()
    assert plan is not None and graph.why_not(plan) is None
    study.tell(trial(0, plan))
    assert study.ask() not in (None, plan)


def trial(number: int, plan: Plan) -> Trial:
    outcome = Measured(seconds=(1.5,), ratios=(0.3,), lpips=(0.05,))
    return Trial(number=number, plan=plan, outcome=outcome, origin="sampler", seconds=1.0)
