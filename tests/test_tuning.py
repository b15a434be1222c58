"""Requests, prompts, scores, choices and certificates: everything that needs no pipeline."""

from collections.abc import Callable
from pathlib import Path

import pytest

from planner.case.goal import Goal
from planner.case.outcome import Failed, Measured
from planner.errors import InvalidFile, TrialFailed, UsageError
from planner.plans.plan import Plan
from planner.trials.trial import Trial
from planner.tuning.choose import fastest, finalists, front, incumbent
from planner.tuning.noise import again_if_it_died
from planner.tuning.prepare import prepare
from planner.tuning.prompts import read_prompts, split_file, split_lists
from planner.tuning.request import CERTIFY_PROMPTS, SEARCH_PROMPTS, goal_of, goal_slug
from planner.tuning.score import AIM, score
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


def test_a_catalogue_with_too_few_unseen_prompts_says_so_before_anything_runs() -> None:
    with pytest.raises(UsageError, match="160 unseen prompts, too few to certify") as caught:
        prepare({"budget": "2s", "batch": 17})
    assert caught.value.value == 17 and "with 176" in caught.value.way_out
    assert len(prepare({"budget": "2s", "batch": 17, "no_certify": True}).split.search) == 17


def test_another_seed_opens_other_prompts_where_there_are_more() -> None:
    texts = [f"prompt {i}" for i in range(2 * CERTIFY_PROMPTS)]
    first, second = (split_lists(["a"], texts, seed) for seed in (0, 1))
    assert not {p.text for p in first.certify} & {p.text for p in second.certify}


def test_an_unknown_option_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="no option 'max_lpip'") as caught:
        prepare({"budget": "2s", "max_lpip": 0.05})
    assert "max_lpips" in caught.value.way_out


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


def test_quality_without_a_budget_is_scored_as_it_is_raced() -> None:
    goal = goal_of(None, "12GiB", None, "quality")
    found = score(measured(0.3, 0.05), goal, REFERENCE)
    assert goal.by_quality and found.objective == found.lpips
    assert score(measured(0.3, None), goal, REFERENCE).objective is None
    assert not goal_of(None, "12GiB", None).by_quality


def test_a_failure_is_told_as_violated_and_imputed_with_the_worst_feasible_value() -> None:
    good = trial(0, 30, measured(0.3, 0.05))
    far = trial(2, 4, measured(0.1, 0.6))
    failed = trial(1, 20, Failed(stage="crash", reason="gone"))
    said = told(failed, GOAL, REFERENCE, [good, far])
    assert said.imputed
    assert said.value == pytest.approx(0.05)
    assert told(failed, GOAL, REFERENCE, [far]).value == pytest.approx(0.6), "none is feasible"
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


def spread(number: int, ratio: float, lpips: float) -> Trial:
    """Return a trial whose images differ in distance, as real ones do."""
    values = tuple(lpips * share for share in (0.5, 0.8, 0.9, 1.1, 1.2, 1.5))
    outcome = measured(ratio, lpips).model_copy(update={"lpips": values})
    return trial(number, 50 - number, outcome)


def test_a_cap_alone_sends_plans_that_should_pass_and_not_the_slowest_one() -> None:
    goal = Goal(max_lpips=0.1, prefer="speed")
    trials = [spread(0, 0.98, 0.0), spread(1, 0.3, 0.098), spread(2, 0.35, 0.09),
              spread(3, 0.4, 0.08), spread(4, 0.5, 0.05), spread(5, 0.7, 0.02)]  # fmt: skip
    fastest, promising, roomy = finalists(trials, goal, REFERENCE)
    assert fastest == trials[1].plan
    assert promising == trials[3].plan, "0.09 is inside the cap, its likely bound is not"
    assert roomy == trials[4].plan


def test_prompts_that_were_opened_before_ask_for_a_wider_berth() -> None:
    goal = Goal(max_lpips=0.1, prefer="speed")
    trials = [spread(0, 0.3, 0.098), spread(1, 0.35, 0.084), spread(2, 0.4, 0.07)]
    assert finalists(trials, goal, REFERENCE)[1] == trials[1].plan
    assert finalists(trials, goal, REFERENCE, openings=50)[1] == trials[2].plan


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
