"""Measuring a policy again: what drifted is said, what did not is not."""

from pathlib import Path
from typing import Any

import pytest

from planner.case.evidence import Evidence
from planner.case.hit_rate import HitRate
from planner.case.prompts import Prompt
from planner.errors import UsageError
from planner.plans.plan import Plan
from planner.policy.runtime import Policy
from planner.policy.verify import Held, prompts_for, verify
from tests.policies import a_policy, a_predicted_policy, some_evidence
from tests.tiny import tiny_case, tiny_flux

PROMPTS = [Prompt(text="a red circle", seed=0), Prompt(text="a blue star", seed=1),
           Prompt(text="two green square", seed=2)]  # fmt: skip


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_flux(layers=1, single_layers=1)


def policy_stating(pipe: Any, ratio: float, lpips: float) -> Policy:
    """Return a policy of two steps that claims this ratio and mean LPIPS."""
    stated = some_evidence().model_dump()
    stated["latency"]["ratio"] = {"value": ratio, "upper": ratio, "unit": "ratio"}
    stated["hit_rates"] = None
    stated["latency"]["holds_while_baseline_within"] = 1000.0
    stated["lpips"]["mean"] = {"value": lpips, "upper": lpips, "unit": "LPIPS"}
    case = tiny_case(pipe, num_inference_steps=6)
    plan = Plan.of({"steps": {"num_inference_steps": 4}})
    file = a_policy(case=case, plan=plan, artifacts={}, evidence=Evidence.model_validate(stated))
    return Policy(file, Path("2s.yaml"))


def test_a_policy_that_keeps_its_word_has_not_drifted(pipe: Any) -> None:
    lines: list[str] = []
    policy = policy_stating(pipe, ratio=100.0, lpips=1.0)
    found = verify(policy, pipe, PROMPTS, rounds=2, say=lines.append)
    assert found.drifted == () and found.outside == () and found.holds is True
    assert (found.rounds, found.prompts) == (3, 3)
    assert found.lpips is not None and 0 < found.lpips.value < 1
    assert len(lines) == 4 and type(pipe).__call__ is not None
    assert found.as_json()["ratio"]["drifted"] is False


@pytest.mark.parametrize("low, high, named", [(0.85, 0.95, False), (0.95, 1.0, True)])
def test_what_a_cache_reuses_is_told_beside_what_was_expected_and_is_no_drift(
    pipe: Any, low: float, high: float, named: bool
) -> None:
    stated = policy_stating(pipe, ratio=100.0, lpips=1.9).file.evidence
    assert stated is not None
    expected = {"first_block_cache": HitRate(value=0.9, low=low, high=high, calls=32)}
    plan = Plan.of({"first_block_cache": {"threshold": 1.0}})
    file = a_policy(case=tiny_case(pipe, num_inference_steps=10), plan=plan, artifacts={},
                    evidence=stated.model_copy(update={"hit_rates": expected}))  # fmt: skip
    found = verify(Policy(file, Path("2s.yaml")), pipe, PROMPTS[:2], rounds=1)
    said = found.hit_rates["first_block_cache"]
    assert (said.value, said.low, said.high) == (0.9, 0.9, 0.9)
    assert found.as_json()["hit_rates"]["first_block_cache"]["expected_low"] == low
    assert found.drifted == () and found.unexpected == ((
        "first_block_cache reuses 90.0% of its forwards here; the policy expects 95.0% to 100.0%",
    ) if named else ())  # fmt: skip


def test_a_policy_that_claims_too_much_has_drifted(pipe: Any) -> None:
    found = verify(policy_stating(pipe, ratio=1e-6, lpips=1e-9), pipe, PROMPTS[:1] * 3, rounds=5)
    assert found.rounds == 5  # the fewest whose least ratio is a 95 % bound
    assert found.ratio.drifted and "the policy states at most 1e-06" in found.drifted[0]
    assert found.lpips is not None and found.lpips.drifted  # three times the same image
    assert len(found.drifted) == 2


def test_the_pipeline_is_untouched_afterwards(pipe: Any) -> None:
    kind = type(pipe)
    verify(policy_stating(pipe, ratio=1.0, lpips=1.0), pipe, PROMPTS[:1], rounds=1)
    assert type(pipe) is kind


def test_too_few_rounds_show_no_drift() -> None:
    held = Held(value=2.0, lower=None, stated=0.3, stated_upper=0.4, unit="ratio")
    assert not held.drifted
    assert held.model_copy(update={"lower": 0.41}).drifted
    assert not held.model_copy(update={"lower": 0.39}).drifted


def test_nothing_can_be_held_against_a_prediction(pipe: Any) -> None:
    file = policy_stating(pipe, 1.0, 1.0).file
    predicted = a_predicted_policy(case=file.case, plan=file.as_plan(), artifacts={})
    with pytest.raises(UsageError, match="states no figures"):
        verify(Policy(predicted, Path("2s.yaml")), pipe, PROMPTS)


def test_a_batch_that_the_prompts_do_not_fill_is_filled_up(pipe: Any) -> None:
    policy = policy_stating(pipe, ratio=100.0, lpips=1.0)
    workload = policy.file.case.workload.model_copy(update={"batch_size": 2})
    case = policy.file.case.model_copy(update={"workload": workload})
    pair = Policy(policy.file.model_copy(update={"case": case}), policy.path)
    found = verify(pair, pipe, PROMPTS, rounds=1)
    assert (found.rounds, found.prompts) == (2, 4)


def test_a_model_without_known_prompts_needs_them(pipe: Any) -> None:
    policy = policy_stating(pipe, 1.0, 1.0)
    with pytest.raises(UsageError, match="no prompts are known for"):
        prompts_for(policy, (), 3)
    assert [p.seed for p in prompts_for(policy, ("a", "b"), 9)] == [0, 1]
    with pytest.raises(UsageError, match="there is nothing to render"):
        verify(policy, pipe, [])
