"""Requests, prompts, scores, choices and certificates: everything that needs no pipeline."""

from collections.abc import Callable
from pathlib import Path

import pytest

from planner.case.goal import Goal
from planner.case.outcome import Failed, Measured
from planner.case.prompts import Sample
from planner.errors import InvalidFile, TrialFailed, UsageError
from planner.passes.base import Domain
from planner.plans.plan import Plan
from planner.trials.trial import Trial
from planner.tuning.certify import ALPHA, Rounds, alpha_each, bounds, certify, hopeless
from planner.tuning.choose import fastest, finalists, front, incumbent
from planner.tuning.noise import again_if_it_died
from planner.tuning.prepare import prepare
from planner.tuning.prompts import read_prompts, split_file, split_lists
from planner.tuning.request import CERTIFY_PROMPTS, SEARCH_PROMPTS, goal_of, goal_slug
from planner.tuning.score import AIM, score
from planner.tuning.space import fitted
from planner.tuning.study import told

GOAL = Goal(budget_seconds=2.0, max_lpips=0.1)
REFERENCE = 5.0


def measured(ratio: float, lpips: float | None, early: str | None = None) -> Measured:
    values = () if lpips is None else (lpips,) * SEARCH_PROMPTS
    return Measured(seconds=(ratio * 5,) * 3, ratios=(ratio,) * 3, lpips=values,
                    memory_bytes=2**30, stopped_early=early)  # fmt: skip


def trial(number: int, steps: int, outcome: Measured | Failed) -> Trial:
    plan = Plan.of({"steps": {"num_inference_steps": steps}})
    return Trial(number=number, plan=plan, outcome=outcome, origin="sampler", seconds=1.0)


def test_a_budget_alone_implies_the_balanced_cap() -> None:
    goal = goal_of("2s", None, None)
    assert (goal.budget_seconds, goal.max_lpips, goal.prefer) == (2.0, 0.10, "quality")


def test_a_cap_alone_asks_for_speed() -> None:
    assert goal_of(None, None, "0.05").prefer == "speed"


def test_none_lifts_the_cap() -> None:
    assert goal_of("2s", None, "none").max_lpips is None


@pytest.mark.parametrize(
    ("budget", "cap", "said"),
    [("2", None, "cannot read '2' as a duration"), ("2s", "balnced", "did you mean balanced"),
     ("2s", "7", "makes no sense"), (None, None, "no goal was given")],
)  # fmt: skip
def test_an_unreadable_goal_is_refused_with_the_way_out(
    budget: str | None, cap: str | None, said: str
) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        goal_of(budget, None, cap)
    assert caught.value.way_out


def test_every_goal_has_its_own_file_name() -> None:
    goals = [goal_of("2s", None, None), goal_of("2s", "12GiB", None), goal_of("2s", None, "near"),
             goal_of(None, None, "0.03"), goal_of("2s", None, None, "speed"),
             goal_of("850ms", None, None), goal_of("2s", None, "none")]  # fmt: skip
    slugs = [goal_slug(goal) for goal in goals]
    assert slugs[0] == "2s"
    assert len(set(slugs)) == len(slugs)


def test_a_prompts_file_too_short_to_certify_says_how_many_are_needed() -> None:
    with pytest.raises(UsageError, match=str(SEARCH_PROMPTS + CERTIFY_PROMPTS)):
        split_file([f"prompt {i}" for i in range(10)], 0, certify=True)
    split = split_file([f"prompt {i}" for i in range(10)], 0, certify=False)
    assert len(split.search) == SEARCH_PROMPTS


def test_a_zero_is_given_not_left_out() -> None:
    with pytest.raises(UsageError, match="a batch of 0 is empty") as caught:
        prepare({"budget": "2s", "batch": 0})
    assert caught.value.value == 0
    assert "--batch 1" in caught.value.way_out


def test_large_batches_need_prompts_for_ten_calls() -> None:
    texts = [f"prompt {i}" for i in range(60)]
    with pytest.raises(UsageError, match="60 distinct prompts are too few") as caught:
        split_file(texts, 0, certify=True, batch=8)
    assert "at least 86" in caught.value.way_out
    assert len(split_file(texts, 0, certify=True, batch=5).certify) == 50


def test_another_seed_opens_other_prompts_where_there_are_more() -> None:
    texts = [f"prompt {i}" for i in range(2 * CERTIFY_PROMPTS)]
    first, second = (split_lists(["a"], texts, seed) for seed in (0, 1))
    assert not {p.text for p in first.certify} & {p.text for p in second.certify}


@pytest.mark.parametrize(
    ("domains", "said"),
    [({"stepss": {}}, "unknown pass 'stepss'"), ({"steps": {"count": {}}}, "unknown setting"),
     ({"steps": {"num_inference_steps": {"low": 30, "high": 20}}}, "is empty: 30 to 20"),
     ({"int8_dynamic": {"scope": {"choices": ["block"]}}}, "scope cannot be 'block'")],
)  # fmt: skip
def test_domains_that_no_plan_can_follow_are_refused_before_anything_runs(
    domains: dict[str, dict[str, dict[str, object]]], said: str
) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        prepare({"budget": "2s", "domains": domains})
    assert caught.value.way_out


def test_an_unknown_option_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="no option 'max_lpip'") as caught:
        prepare({"budget": "2s", "max_lpip": 0.05})
    assert "max_lpips" in caught.value.way_out


def test_expert_plans_are_moved_into_the_domains() -> None:
    variables = {"steps.num_inference_steps": Domain(low=20, high=40, integer=True),
                 "int8_dynamic.scope": Domain(choices=("attention", "blocks"))}  # fmt: skip
    plan = Plan.of({"steps": {"num_inference_steps": 12}, "int8_dynamic": {"scope": "blocks"}})
    moved = fitted(plan, variables)
    assert str(moved) == str(Plan.of({"steps": {"num_inference_steps": 20},
                                      "int8_dynamic": {"scope": "blocks"}}))  # fmt: skip
    assert fitted(moved, variables) == moved


def failing(times: int, stage: str) -> Callable[[], str]:
    left = [TrialFailed("the worker ended", stage=stage, way_out="look")] * times

    def action() -> str:
        if left:
            raise left.pop()
        return "done"

    return action


def test_what_a_dying_worker_did_is_done_once_more_and_no_further() -> None:
    assert {again_if_it_died(failing(1, stage)) for stage in ("crash", "timeout")} == {"done"}
    for times, stage in ((2, "crash"), (1, "guard")):
        with pytest.raises(TrialFailed):
            again_if_it_died(failing(times, stage))


def test_an_empty_prompts_file_is_invalid(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\n# nothing\n")
    with pytest.raises(InvalidFile, match="holds no prompt"):
        read_prompts(path)
    with pytest.raises(InvalidFile, match="cannot read"):
        read_prompts(tmp_path / "absent.txt")


def test_search_and_certification_prompts_never_share_a_text() -> None:
    split = split_file([f"prompt {i}" for i in range(60)], 3, certify=True)
    seen = {prompt.text for prompt in split.search}
    assert not seen & {prompt.text for prompt in split.certify}
    assert len({prompt.seed for prompt in (*split.search, *split.certify)}) == 38


def test_batches_are_filled_so_that_every_call_has_the_batch_size() -> None:
    split = split_lists(["a", "b"], ["c", "d", "e"], 0, batch=4)
    assert len(split.search) == 4
    assert len({prompt.id for prompt in split.search}) == 4
    assert len(split.certify) == 4


def test_latency_is_the_ratio_times_the_reference_seconds() -> None:
    found = score(measured(0.3, 0.05), GOAL, REFERENCE)
    assert found.seconds == pytest.approx(1.5)
    assert found.slack["latency"] == pytest.approx(1.5 / (AIM * 2.0) - 1)
    assert found.objective == pytest.approx(0.05)
    assert found.feasible


def test_a_plan_whose_images_were_not_looked_at_is_never_feasible() -> None:
    assert not score(measured(0.3, None), GOAL, REFERENCE).feasible


def test_a_failure_is_told_as_violated_and_imputed_with_the_worst_value() -> None:
    good = trial(0, 30, measured(0.3, 0.05))
    failed = trial(1, 20, Failed(stage="crash", reason="gone"))
    said = told(failed, GOAL, REFERENCE, [good])
    assert said.imputed
    assert said.value == pytest.approx(0.05)
    assert set(said.constraints) == {"failed", "latency", "lpips"}
    assert said.constraints["failed"] > 0


def test_every_outcome_sets_the_same_constraints() -> None:
    outcomes = [measured(0.3, 0.05), measured(0.9, None, "over the budget"),
                Failed(stage="guard", reason="black")]  # fmt: skip
    keys = [set(told(trial(0, 30, one), GOAL, REFERENCE, []).constraints) for one in outcomes]
    assert keys[0] == keys[1] == keys[2]


def test_the_incumbent_is_the_least_distance_inside_the_limits() -> None:
    trials = [trial(0, 40, measured(0.6, 0.01)), trial(1, 20, measured(0.35, 0.05)),
              trial(2, 12, measured(0.2, 0.09)),
              trial(3, 13, measured(0.2, 0.02, "stopped"))]  # fmt: skip
    found = incumbent(trials, GOAL, REFERENCE)
    assert found is not None
    assert found[0].number == 1


def test_a_plan_between_the_aim_and_the_budget_counts_where_nothing_else_does() -> None:
    tight = trial(0, 30, measured(0.39, 0.05))
    found = score(measured(0.39, 0.05), GOAL, REFERENCE)
    assert found.inside and not found.feasible and found.over == ()
    assert finalists([tight], GOAL, REFERENCE) == (tight.plan,)
    roomy = trial(1, 20, measured(0.3, 0.08))
    assert finalists([tight, roomy], GOAL, REFERENCE) == (roomy.plan,)
    beyond = score(measured(0.41, 0.2), GOAL, REFERENCE)
    assert beyond.over == ("latency", "lpips") and not beyond.inside


def test_finalists_are_the_best_a_roomy_one_and_the_safest() -> None:
    trials = [trial(0, 20, measured(0.379, 0.04)), trial(1, 18, measured(0.34, 0.05)),
              trial(2, 12, measured(0.2, 0.06)), trial(3, 11, measured(0.19, 0.099))]  # fmt: skip
    plans = finalists(trials, GOAL, REFERENCE)
    assert plans == tuple(trials[i].plan for i in (0, 1, 2))


def test_no_finalist_where_nothing_meets_the_goal() -> None:
    trials = [trial(0, 40, measured(0.9, 0.01)), trial(1, 4, measured(0.1, 0.5))]
    assert finalists(trials, GOAL, REFERENCE) == ()
    found = fastest(trials, GOAL, REFERENCE)
    assert found is not None
    assert found[0].number == 1


def test_the_front_holds_what_nothing_else_beats() -> None:
    trials = [trial(0, 40, measured(0.8, 0.01)), trial(1, 20, measured(0.4, 0.05)),
              trial(2, 21, measured(0.45, 0.06)), trial(3, 5, measured(0.1, 0.3))]  # fmt: skip
    assert [t.number for t in front(trials, GOAL, REFERENCE)] == [3, 1, 0]


def sample(seconds: float, lpips: float | None = None) -> Sample:
    return Sample(prompts=("p",), seconds=seconds, lpips=() if lpips is None else (lpips,))


def rounds(ratio: float, lpips: list[float]) -> Rounds:
    return Rounds(candidate=tuple(sample(5 * ratio, v) for v in lpips),
                  baseline=tuple(sample(5.0) for _ in lpips))  # fmt: skip


def test_alpha_is_divided_by_openings_finalists_and_limits() -> None:
    assert alpha_each(3, GOAL, 1) == pytest.approx(ALPHA / 6)
    assert alpha_each(3, GOAL, 2) == pytest.approx(ALPHA / 12)


def test_a_mean_just_below_the_cap_is_not_enough_to_certify() -> None:
    values = [0.08 + 0.03 * ((i % 5) - 2) for i in range(32)]
    tight = bounds(rounds(0.3, [v + 0.015 for v in values]), GOAL, REFERENCE, 0.008)["lpips"]
    assert tight.value < GOAL.max_lpips < tight.upper  # type: ignore[operator]
    assert not tight.holds
    assert bounds(rounds(0.3, [v / 2 for v in values]), GOAL, REFERENCE, 0.008)["lpips"].holds


def test_latency_needs_ten_rounds_at_least() -> None:
    few = bounds(rounds(0.3, [0.01] * 4), GOAL, REFERENCE, 0.008)["latency"]
    assert not few.holds
    assert bounds(rounds(0.3, [0.01] * 10), GOAL, REFERENCE, 0.008)["latency"].holds


def test_a_hopeless_finalist_is_stopped_after_ten_rounds() -> None:
    assert hopeless(rounds(0.3, [0.5] * 9), GOAL, REFERENCE) is None
    assert "over the cap" in str(hopeless(rounds(0.3, [0.5] * 10), GOAL, REFERENCE))
    assert "over budget" in str(hopeless(rounds(0.9, [0.01] * 10), GOAL, REFERENCE))


def test_a_finalist_is_certified_only_when_all_bounds_hold() -> None:
    calls = [()] * 32
    plan = Plan.of({"steps": {"num_inference_steps": 20}})
    good, played = certify(plan, calls, GOAL, REFERENCE, 0.008,
                           lambda *_: (sample(1.5, 0.03), sample(5.0)))  # fmt: skip
    assert good.passed
    assert len(played.ratios) == 32
    bad, played = certify(plan, calls, GOAL, REFERENCE, 0.008,
                          lambda *_: (sample(2.5, 0.03), sample(5.0)))  # fmt: skip
    assert not bad.passed
    assert bad.stopped_early is not None
    assert len(played.candidate) == 10
