"""Plans are canonical, hashable and print in one line."""

import pytest

from planner.errors import UsageError
from planner.plans.plan import BASELINE, Plan, PlannedPass


def test_two_ways_to_write_a_plan_are_one_plan() -> None:
    short = Plan.of({"tea_cache": {}, "steps": {"num_inference_steps": 30}})
    default = short.settings("tea_cache")["threshold"]
    written = Plan.of({"steps": {"num_inference_steps": 30}, "tea_cache": {"threshold": default}})
    assert written == short
    assert hash(written) == hash(short)
    assert written.digest() == short.digest()
    assert Plan.of({"steps": {"num_inference_steps": 31}, "tea_cache": {}}) != short


def test_passes_stand_in_stage_order_however_they_are_named() -> None:
    names = ("compile_blocks", "tea_cache", "int8_dynamic", "steps")
    plan = Plan.of({name: {} for name in names})
    assert plan.names == ("steps", "int8_dynamic", "tea_cache", "compile_blocks")


def test_every_default_is_written_out() -> None:
    plan = Plan.of({"guidance_interval": {}})
    assert set(plan.settings("guidance_interval")) == {"start", "stop"}


def test_a_plan_prints_what_differs_from_the_defaults() -> None:
    plan = Plan.of({"steps": {"num_inference_steps": 30}, "int8_dynamic": {}, "tea_cache": {}})
    assert str(plan) == "steps(30) > int8_dynamic > tea_cache"
    assert str(Plan.of({"guidance_interval": {"stop": 0.5}})) == "guidance_interval(stop=0.5)"
    assert str(BASELINE) == "baseline"


def test_an_unknown_pass_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError) as caught:
        Plan.of({"first_block_cash": {}})
    assert caught.value.value == "first_block_cash"
    assert caught.value.way_out == "did you mean first_block_cache?"


def test_an_unknown_setting_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="did you mean threshold") as caught:
        Plan.of({"tea_cache": {"treshold": 0.1}})
    assert caught.value.value == "treshold"


def test_a_value_outside_its_range_is_refused_with_field_and_value() -> None:
    with pytest.raises(UsageError, match=r"steps\.num_inference_steps cannot be 0") as caught:
        Plan.of({"steps": {"num_inference_steps": 0}})
    assert caught.value.value == 0
    assert "planner passes steps" in caught.value.way_out


def test_settings_that_name_nothing_are_refused_with_the_pass() -> None:
    with pytest.raises(UsageError, match="settings of easy_cache are None") as caught:
        Plan.of({"easy_cache": None})  # type: ignore[dict-item]
    assert "{} for the defaults" in caught.value.way_out


def test_a_pass_named_twice_is_refused() -> None:
    twice = [PlannedPass(name="steps"), PlannedPass(name="steps")]
    with pytest.raises(UsageError, match="'steps' stands twice"):
        Plan.of(twice)


def test_a_plan_can_lose_a_pass_and_be_cut_before_one() -> None:
    plan = Plan.of({"steps": {}, "int8_dynamic": {}, "tea_cache": {}})
    assert plan.without("int8_dynamic").names == ("steps", "tea_cache")
    assert plan.before("tea_cache").names == ("steps", "int8_dynamic")
    assert "steps" in plan and "compile_blocks" not in plan


def test_a_plan_survives_json() -> None:
    plan = Plan.of({"steps": {"num_inference_steps": 12}, "tea_cache": {}})
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
