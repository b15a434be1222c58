"""What cannot be cached, or not so, is said in a sentence with the way out."""

import re
from typing import Any

import pytest

from planner.case.case import Case
from planner.case.model import Traits
from planner.cli.main import run
from planner.errors import UsageError
from planner.passes import registry
from planner.passes.base import domains
from planner.plans.graph import build
from planner.plans.plan import Plan
from tests.cases import flux_case
from tests.passes.driving import unet_bench
from tests.passes.gpus import on_gpu

REUSE = tuple(one.name for one in build(flux_case()).legal if "denoiser.step_reuse" in one.owns)
SENTENCE = re.compile(r"^\S.* .*\)$")
"""An answer of the graph: a sentence and, in brackets, its source."""


def why_not(case: Case, plan: dict[str, Any]) -> str:
    """Return the graph's answer to a plan that is not legal."""
    said = build(case).why_not(Plan.of(plan))
    assert said is not None and SENTENCE.match(said), said
    return said


def strange() -> Case:
    """A case whose denoiser has blocks that diffusers has not registered."""
    traits = Traits(denoiser="transformer", denoiser_class="Strange", blocks=4,
                    block_classes=("StrangeBlock",), branches=("cond", "uncond"))  # fmt: skip
    return flux_case(traits=traits)


def test_on_unregistered_blocks_whole_outputs_can_be_skipped_and_stacks_not() -> None:
    graph, case = build(strange()), strange()
    legal = {one.name for one in graph.legal}
    assert {"easy_cache", "sea_cache", "step_mask", "uncond_cache"} <= legal
    for name in ("mag_cache", "taylor_seer", "tea_cache", "first_block_cache"):
        assert name not in legal and "StrangeBlock" in why_not(case, {name: {}}), name
    for name in ("sea_cache", "step_mask"):
        said = why_not(case, {name: {"tensor": "residual"}})
        assert "StrangeBlock" in said and "(tensor: output)" in said


def test_a_model_without_any_block_list_names_its_denoiser() -> None:
    case = unet_bench().case
    for name in ("mag_cache", "taylor_seer", "tea_cache"):
        assert "UNet2DConditionModel" in why_not(case, {name: {}})
    assert "UNet2DConditionModel has none" in why_not(case, {"step_mask": {"tensor": "residual"}})


@pytest.mark.parametrize("name", [one for one in REUSE if one != "easy_cache"])
def test_two_caches_of_steps_never_stand_together(name: str) -> None:
    said = why_not(flux_case(), {"easy_cache": {}, name: {}})
    assert "both own denoiser.step_reuse: keep one" in said
    assert {"easy_cache", name} <= set(re.findall(r"\w+_\w+", said))


def test_two_caches_that_are_asked_for_are_refused_by_the_command_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["graph", "sdxl", "--target", "h100-sxm", "--with", "easy_cache", "--with", "sea_cache"]
    assert run(asked) == 2
    said = capsys.readouterr().err
    assert "cannot both be asked for" in said and "denoiser.step_reuse" in said


@pytest.mark.parametrize(("arguments", "said"), [
    (["sdxl", "--with", "tea_cache"], "tea_cache needs registered blocks"),
    (["sdxl", "--steps", "8", "--with", "easy_cache"],
     "easy_cache needs at least 9 steps; this call has 8"),
    (["flux.1-schnell", "--with", "sea_cache"], "needs at least 9 steps; this call has 4"),
    (["flux.1-dev", "--with", "uncond_cache"],
     "uncond_cache needs true guidance; this call's is embedded"),
    (["wan2.2-t2v-a14b", "--with", "step_mask"], "step_mask needs one denoiser"),
])  # fmt: skip
def test_a_cache_that_a_model_cannot_have_is_refused_with_the_reason(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["graph", *arguments, "--target", "h100-sxm"]) == 2
    shown = capsys.readouterr().err
    assert said in shown and "cannot be used here" in shown


@pytest.mark.parametrize("name", REUSE)
def test_fewer_steps_than_a_cache_can_use_are_refused_also_where_another_pass_takes_them(
    name: str,
) -> None:
    said = why_not(flux_case(), {"steps": {"num_inference_steps": 8}, name: {}})
    assert name in said and "8 steps" in said


def test_a_mask_is_for_the_steps_that_the_plan_takes() -> None:
    case = flux_case()
    ten = {"steps": {"num_inference_steps": 10}}
    assert build(case).why_not(Plan.of(ten | {"step_mask": {"mask": "1010101010"}})) is None
    said = why_not(case, {"step_mask": {"mask": "1010101010"}})
    assert "has a mask of 10 steps and this call has 50" in said and "or a share instead" in said


@pytest.mark.parametrize(("name", "settings", "value", "said"), [
    ("easy_cache", {"threshold": -1}, -1, "greater than or equal to 0"),
    ("easy_cache", {"threshold": float("nan")}, float("nan"), "finite number"),
    ("easy_cache", {"threshold": "much"}, "much", "valid number"),
    ("sea_cache", {"tensor": "nothing"}, "nothing", "'output' or 'residual'"),
    ("sea_cache", {"most": 0}, 0, "greater than or equal to 1"),
    ("sea_cache", {"order": 2}, 2, "less than or equal to 1"),
    ("step_mask", {"mask": "0101"}, "0101", "(a mask is made of 1 and 0"),
    ("step_mask", {"mask": 101}, 101, "valid string"),
    ("step_mask", {"share": 1.5}, 1.5, "less than or equal to 1"),
    ("uncond_cache", {"interval": 1.5}, 1.5, "valid integer"),
    ("uncond_cache", {"first": 0}, 0, "greater than or equal to 1"),
])  # fmt: skip
def test_a_setting_outside_its_range_says_value_and_way_out(
    name: str, settings: dict[str, Any], value: Any, said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        Plan.of({name: settings})
    (key,) = settings
    assert f"{name}.{key} cannot be" in caught.value.what and said in caught.value.what
    assert caught.value.value == value or value != value
    assert f"planner passes {name}" in caught.value.way_out


@pytest.mark.parametrize("name", REUSE)
def test_a_misspelt_setting_is_answered_with_the_nearest(name: str) -> None:
    setting = next(iter(domains(registry.get(name).settings)))
    with pytest.raises(UsageError, match=f"has no setting '{setting}s'") as caught:
        Plan.of({name: {f"{setting}s": 1}})
    assert f"did you mean {setting}?" in caught.value.way_out


@pytest.mark.parametrize(("name", "settings", "legal"), [
    ("easy_cache", {}, True), ("sea_cache", {}, True), ("sea_cache", {"tensor": "residual"}, False),
    ("uncond_cache", {}, True), ("taylor_seer", {}, False), ("mag_cache", {}, False),
])  # fmt: skip
def test_only_what_decides_around_the_forward_stands_beside_recorded_ones(
    name: str, settings: dict[str, Any], legal: bool
) -> None:
    plan = Plan.of({name: settings, "cuda_graphs": {}})
    said = build(on_gpu()).why_not(plan)
    assert said is None if legal else f"would replay what {name} decided" in str(said)
