"""Fewer denoising steps."""

import pytest
import torch

from planner.passes import registry
from tests.passes.driving import Bench, Executed
from tests.tiny import tiny_workload

STEPS = registry.get("steps")


def test_a_plain_call_takes_the_steps_of_the_plan(bench: Bench) -> None:
    expected = bench.draw(num_inference_steps=4)
    with bench.put({"steps": {"num_inference_steps": 4}}), Executed(bench.pipe) as executed:
        assert torch.equal(bench.draw(), expected)
    assert executed.forwards == 8


def test_the_effect_keeps_the_share_of_a_branch_that_runs_less_often(bench: Bench) -> None:
    work = bench.work
    half = work.phases[2].model_copy(update={"calls": 5.0})
    work = work.model_copy(update={"phases": (*work.phases[:2], half, *work.phases[3:])})
    shorter = STEPS.effect(work, STEPS.settings(num_inference_steps=4), None)
    assert [p.calls for p in shorter.phases if p.name == "denoise"] == [4.0, 2.0]
    assert [p.calls for p in shorter.phases if p.name != "denoise"] == [2.0, 1.0]


@pytest.mark.parametrize(("steps", "most"), [(50, 49), (10, 9), (5, 4)])
def test_the_domain_ends_one_below_the_reference(bench: Bench, steps: int, most: int) -> None:
    workload = tiny_workload(num_inference_steps=steps)
    assert STEPS.narrow is not None
    domain = STEPS.narrow(bench.case.model_copy(update={"workload": workload}), None)
    assert (domain["num_inference_steps"].low, domain["num_inference_steps"].high) == (4, most)


def test_a_call_that_names_its_own_sigmas_keeps_them(bench: Bench) -> None:
    workload = tiny_workload(sigmas="1.0, 0.5")
    (said,) = STEPS.missing(bench.case.model_copy(update={"workload": workload}))
    assert said == "steps needs a schedule that the scheduler chooses; this call names its sigmas"
