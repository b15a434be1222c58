"""EasyCache: the rate that a hand can compute, and what stands in for a skipped denoiser."""

from typing import Any

import pytest
import torch

from planner.case.telemetry import Series, Telemetry
from planner.passes import registry
from planner.passes.caching.easy_cache import EasyCacheSettings, masks
from planner.plans.graph import build
from planner.plans.plan import Plan
from tests.passes.driving import Bench, leftovers, traces, unet_bench
from tests.passes.whole import Around, Scripted, latents, on, played

PASS = registry.get("easy_cache")
HALF = {"threshold": 0.5, "start": 0.0}
FALLING = [10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0]
ANSWERS = [2.0, 3.0, 4.0, 9.0]
"""Computed at steps 0, 1, 3 and 7. After step 1 the output moves by |3 - 2| / |9 - 10| = 1 for each
unit of the latents: step 2 gathers 1 × 1 / 3 = 0.33 and is skipped, step 3 has 0.67 and runs. Then
the rate is |4 - 3| / |7 - 9| = 0.5, steps 4 to 6 gather 0.5 × 1 / 4 each, and the last one runs."""


def test_the_rate_is_measured_at_computed_steps_and_gathered_between() -> None:
    denoiser = Scripted(ANSWERS)
    with on(denoiser, {"easy_cache": HALF}, 8) as under:
        found = played(under, denoiser, FALLING)
        assert under.statistics["easy_cache"]["mask_single"] == "11010001"
    added = {1: 3.0 - 9.0, 3: 4.0 - 7.0}
    assert found == [2, 3, 8 + added[1], 4, 6 + added[3], 5 + added[3], 4 + added[3], 9]


def test_the_simulation_gives_the_same_mask_from_recorded_differences() -> None:
    outputs = [2.0, 3.0, 3.3, 4.0, 4.4, 5.0, 5.5, 9.0]  # those of skipped steps are not looked at
    run = {"single": {"latents": line(FALLING), "output": line(outputs)}}
    seen = Telemetry(places=tuple(1 - step / 8 for step in range(8)), runs=(run,))
    assert masks(EasyCacheSettings(**HALF), seen) == [{"single": "11010001"}]
    # The rate at step 3 is then |4 - 3.3| / 1: steps 4 to 6 gather 0.7 / 4 each, 0.525 in all.
    assert masks(EasyCacheSettings(threshold=0.5, start=0.5), seen) == [{"single": "11110011"}]
    assert masks(EasyCacheSettings(threshold=0.0, start=0.0), seen) == [{"single": "1" * 8}]


def line(values: list[float]) -> Series:
    """Return the series of tensors that are each of one value."""
    return Series(sizes=tuple(map(abs, values)), apart=tuple(
        tuple(abs(now - before) for before in values[:step]) for step, now in enumerate(values)))


def test_the_first_branch_of_a_step_decides_for_all() -> None:
    answers = [x for answer in ANSWERS for x in (answer, 100 * answer)]
    denoiser = Scripted(answers)
    with on(denoiser, {"easy_cache": HALF}, 8) as under, under.clock.call():
        for value in FALLING:
            denoiser(latents(value))
            denoiser(latents(-50 * value))
            under.step()
        counted = under.statistics["easy_cache"]
    assert counted["mask_single"] == counted["mask_single_2"] == "11010001"
    assert denoiser.ran == 8


def test_steps_before_start_and_the_last_always_run() -> None:
    denoiser = Scripted([1.0] * 8)
    with on(denoiser, {"easy_cache": {"threshold": 100.0, "start": 0.4}}, 10) as under:
        played(under, denoiser, [1 + step / 10 for step in range(10)])
        assert under.statistics["easy_cache"]["mask_single"] == "1111000001"


def test_latents_that_do_not_move_tell_nothing_and_everything_runs() -> None:
    denoiser = Scripted([1.0] * 8)
    with on(denoiser, {"easy_cache": {"threshold": 100.0, "start": 0.0}}, 8) as under:
        assert played(under, denoiser, [5.0] * 8) == [1.0] * 8
        assert under.statistics["easy_cache"]["mask_single"] == "1" * 8


def test_after_steps_without_a_call_the_rate_is_measured_anew() -> None:
    denoiser = Scripted(range(100))
    values: list[float | None] = [10.0, 9.0, 8.9, None, None, 8.0, 7.9, 7.8, 7.7, 7.6]
    with on(denoiser, {"easy_cache": {"threshold": 100.0, "start": 0.0}}, 10) as under:
        played(under, denoiser, values)
        assert under.statistics["easy_cache"]["mask_single"] == "110--11001"


def test_a_call_that_broke_off_leaves_nothing_for_the_next() -> None:
    denoiser = Scripted([2.0, 3.0, *ANSWERS])
    with on(denoiser, {"easy_cache": HALF}, 8) as under:
        with pytest.raises(InterruptedError), under.clock.call():
            for value in FALLING[:3]:
                denoiser(latents(value))
                under.step()
            raise InterruptedError
        assert denoiser.ran == 2
        played(under, denoiser, FALLING)
        assert under.statistics["easy_cache"]["mask_single"] == "11010001"


def test_outside_a_pipeline_call_the_denoiser_always_runs() -> None:
    denoiser = Scripted([1.0] * 5)
    with on(denoiser, {"easy_cache": {"threshold": 100.0, "start": 0.0}}, 8) as under:
        for _ in range(5):
            denoiser(latents(3.0))
        assert denoiser.ran == 5 and under.statistics["easy_cache"] == {}
    assert traces(denoiser) == []


def check_formula(seen: Around, mask: str, branch: int = 0, branches: int = 1) -> None:
    """A skipped step gives its own latents plus what the last computed step added to its own."""
    inputs, outputs = seen.latents[branch::branches], seen.outputs[branch::branches]
    last = 0
    for step, one in enumerate(mask):
        if one == "1":
            last = step
        else:
            expected = inputs[step] + (outputs[last] - inputs[last])
            assert torch.equal(outputs[step], expected), step
    assert mask.count("0") >= 2 and len(mask) == len(inputs)


def test_a_skipped_step_of_sequential_guidance_is_the_formula(bench: Bench) -> None:
    with bench.put({"easy_cache": {"threshold": 0.6}}) as handle:
        with Around(bench.pipe.transformer) as seen:
            bench.draw()
        counted = handle.stats["easy_cache"]
    assert counted["mask_cond"] == counted["mask_uncond"]
    for index, branch in enumerate(("cond", "uncond")):
        check_formula(seen, str(counted[f"mask_{branch}"]), index, 2)


def test_a_skipped_step_of_batched_guidance_on_a_u_net_is_the_formula() -> None:
    bench = unet_bench()
    with bench.put({"easy_cache": {"threshold": 0.3}}) as handle:
        with Around(bench.pipe.unet) as seen:
            bench.draw()
        mask = str(handle.stats["easy_cache"]["mask_single"])
    assert seen.latents[0].shape[0] == 2
    check_formula(seen, mask)
    assert leftovers(bench.pipe) == [] and torch.equal(bench.draw(), bench.untouched)


@pytest.mark.parametrize(("return_dict", "kind"), [(True, "UNet2DConditionOutput"),
                                                   (False, "tuple")])  # fmt: skip
def test_a_skipped_u_net_returns_what_the_u_net_would(return_dict: bool, kind: str) -> None:
    unet = unet_bench().pipe.unet
    sample = torch.randn(1, 4, 16, 16)
    more: dict[str, Any] = {
        "encoder_hidden_states": torch.randn(1, 8, 64), "return_dict": return_dict,
        "added_cond_kwargs": {"text_embeds": torch.randn(1, 32), "time_ids": torch.ones(1, 6)},
    }  # fmt: skip
    # Only a rule that skips whatever happens is asked about the packing.
    with on(unet, {"easy_cache": {"threshold": 100.0, "start": 0.0}}, 6) as under:
        with Around(unet) as seen, under.clock.call():
            for step in range(5):
                unet(sample * (1 - step / 10), 500 - 100 * step, **more)
                under.step()
        assert under.statistics["easy_cache"]["mask_single"] == "11000"
    assert set(seen.kinds) == {kind}
    check_formula(seen, "11000")


def test_inputs_of_another_shape_than_the_output_are_refused_with_both_numbers() -> None:
    case = unet_bench().case
    for extra, said in ((5, "this input has 5 more channels"), (-4, "this output has 4 more")):
        traits = case.model.traits.model_copy(update={"extra_channels": extra})
        model = case.model.model_copy(update={"traits": traits})
        why = build(case.model_copy(update={"model": model})).why_not(Plan.of({"easy_cache": {}}))
        assert "easy_cache is not legal here" in str(why) and said in str(why)


def test_what_reused_nothing_is_said_with_the_threshold(bench: Bench) -> None:
    with bench.put({"easy_cache": {"threshold": 0.0}}) as handle:
        assert torch.equal(bench.draw(), bench.untouched)
        said = handle.complaints()["easy_cache"]
    assert said == "easy_cache reused none of 20 forwards at threshold 0"
