"""Branches, state per branch, the block stack, and curves through few points."""

import copy
import inspect
from typing import Any

import pytest
import torch

from planner.errors import UsageError
from planner.hooks.beneath import beneath_hooks
from planner.hooks.blocks import denoiser_of, segments
from planner.hooks.branches import Hook, PerBranch, Tally, attach
from planner.hooks.changes import MOST, relative_change
from planner.hooks.clock import StepClock
from planner.hooks.curve import Curve, fit
from planner.hooks.streams import Form
from tests.passes.driving import leftovers, shared_bench


class Seen(Hook):
    def __init__(self) -> None:
        super().__init__()
        self.branches: list[str] = []

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.branches.append(self.branch)
        return args, kwargs


def test_a_hook_on_any_block_knows_the_branch_that_is_computed() -> None:
    bench, seen = shared_bench(), Seen()
    denoiser = bench.pipe.transformer
    detach = attach(denoiser, denoiser.single_transformer_blocks[1], seen, "seen")
    bench.draw(num_inference_steps=2)
    detach()
    bench.draw(num_inference_steps=1)
    assert seen.branches == ["cond", "uncond"] * 2
    assert leftovers(bench.pipe) == []


def test_a_branch_that_resumes_after_skipped_steps_starts_with_an_empty_state() -> None:
    clock = StepClock()
    states: PerBranch[list[int]] = PerBranch(list, clock)
    for clock.step in (0, 1, 2, 5, 6):
        states["cond"].append(clock.step)
    assert states["cond"] == [5, 6]
    clock.step = 0  # another call, without a reset in between
    assert states["cond"] == []


class Sampler:
    def __init__(self) -> None:
        self.timesteps = [3, 2, 1]
        self.taken: list[Any] = []

    def set_timesteps(self, count: int) -> None:
        self.timesteps = list(range(count))

    def step(self, sample: Any, generator: Any = None) -> None:
        self.taken.append((sample, generator))


def test_the_clock_leaves_a_schedulers_signature_as_pipelines_read_it() -> None:
    sampler, clock = Sampler(), StepClock()
    detach = clock.attach(sampler)
    assert list(inspect.signature(sampler.step).parameters) == ["sample", "generator"]
    assert list(inspect.signature(sampler.set_timesteps).parameters) == ["count"]
    sampler.step("x", generator="g")
    assert sampler.taken == [("x", "g")] and clock.step == 1
    detach()
    assert vars(sampler).keys() == {"timesteps", "taken"}


def test_a_copied_scheduler_steps_itself_and_not_the_clock() -> None:
    sampler, clock = Sampler(), StepClock()
    clock.attach(sampler)
    other = copy.deepcopy(sampler)
    other.step("x")
    assert (len(other.taken), len(sampler.taken), clock.step) == (1, 0, 0)


def test_two_clocks_on_one_scheduler_come_off_in_reverse_order() -> None:
    sampler, outer, inner = Sampler(), StepClock(), StepClock()
    first = outer.attach(sampler)
    second = inner.attach(sampler)
    sampler.step("x")
    second()
    sampler.step("y")
    first()
    assert (outer.step, inner.step) == (2, 1) and "step" not in vars(sampler)


def test_the_clock_begins_again_with_new_timesteps_and_knows_a_late_beginning() -> None:
    sampler, clock = Sampler(), StepClock()
    clock.attach(sampler)
    with clock.call():
        sampler.step("x")
        sampler.set_timesteps(5)
        assert (clock.step, clock.total) == (0, 5)
        sampler.begin_index = 2  # type: ignore[attr-defined]
        assert clock.total == 3


def test_branches_do_not_share_state() -> None:
    states: PerBranch[list[int]] = PerBranch(list, StepClock())
    states["cond"].append(1)
    assert states["uncond"] == [] and states["cond"] == [1]


def test_a_tally_keeps_the_last_calls_figures_until_the_next_forward() -> None:
    statistics: dict[str, Any] = {"old": 1}
    clock = StepClock()
    tally = Tally(statistics, clock)
    clock.on_reset(tally.restart)
    with clock.call():
        for clock.step in (2, 3, 5):
            tally.add("uncond", computed=clock.step != 3)
    assert statistics["mask_uncond"] == "--10-1" and statistics["hit_rate"] == pytest.approx(1 / 3)
    assert "old" not in statistics
    with clock.call():
        tally.add("cond", computed=True)
    assert statistics == {"computed": 1, "reused": 0, "hit_rate": 0.0, "computed_cond": 1,
                          "reused_cond": 0, "mask_cond": "1"}  # fmt: skip


def test_the_block_lists_come_in_calling_order() -> None:
    found = segments(shared_bench().pipe.transformer)
    assert [(part.name, len(part.blocks)) for part in found] == [
        ("transformer_blocks", 2), ("single_transformer_blocks", 2),
    ]  # fmt: skip


def test_models_without_blocks_or_denoiser_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="Linear has no block list"):
        segments(torch.nn.Linear(1, 1))
    with pytest.raises(UsageError, match="object has no denoiser") as caught:
        denoiser_of(object())
    assert "transformer or unet" in caught.value.way_out


def test_streams_survive_a_round_trip_through_a_blocks_form() -> None:
    form = Form(shared_bench().pipe.transformer.transformer_blocks[0])
    image, text = torch.zeros(1, 2, 3), torch.ones(1, 4, 3)
    assert form.unpack(form.pack((image, text))) == (image, text)
    keywords = {"hidden_states": image, "encoder_hidden_states": text}
    assert form.inputs((), keywords) == (image, text) == form.inputs((image, text), {})


def test_a_replacement_beneath_hooks_leaves_the_hooks_around_it() -> None:
    denoiser = shared_bench().pipe.transformer
    block, seen = denoiser.transformer_blocks[0], Seen()
    detach = attach(denoiser, block, seen, "seen")
    put_back = beneath_hooks(block, lambda *args, **kwargs: "replaced")
    assert block(1) == "replaced" and seen.branches == ["single"]
    put_back()
    detach()
    put_back = beneath_hooks(block, lambda *args, **kwargs: "bare")
    assert block(1) == "bare"
    put_back()
    assert leftovers(shared_bench().pipe) == []


def test_relative_change_is_bounded_also_from_zero_and_for_no_number() -> None:
    one = torch.ones(4)
    assert relative_change(one * 1.5, one) == pytest.approx(0.5)
    assert relative_change(one, one * 0) == relative_change(one * float("nan"), one) == MOST


def test_a_curve_never_falls_and_is_never_negative() -> None:
    curve = Curve([-1.0, 1.0, -0.1], 0.0, 1.0)  # a hill with its top at 0.5, below zero at 0
    values = [curve(part / 50) for part in range(100)]
    assert values == sorted(values) and values[0] == 0.0
    assert curve(0.5) == pytest.approx(0.15, abs=1e-3)
    assert curve(2.0) == pytest.approx(2 * curve(1.0))


def test_fitting_finds_a_line_and_prefers_it_to_a_wave() -> None:
    xs = [0.1, 0.2, 0.25, 0.4, 0.5, 0.6]
    noise = [0.004, -0.003, 0.002, -0.004, 0.003, -0.002]
    curve, r2 = fit(xs, [2 * x + e for x, e in zip(xs, noise, strict=True)])
    assert len(curve.coefficients) == 2 and r2 > 0.99
    assert curve(0.3) == pytest.approx(0.6, abs=0.02)


def test_fitting_a_bend_takes_a_higher_degree() -> None:
    xs = [part / 20 for part in range(1, 21)]
    curve, r2 = fit(xs, [x**3 for x in xs])
    assert len(curve.coefficients) >= 4 and r2 > 0.999


def test_fitting_equal_points_gives_a_constant() -> None:
    curve, _ = fit([0.2, 0.2, 0.2], [0.1, 0.2, 0.3])
    assert curve.coefficients == (0.2,) and curve(0.2) == pytest.approx(0.2)
