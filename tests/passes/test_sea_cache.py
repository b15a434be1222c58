"""SeaCache: its filter by the formula, its decision by hand, and what a skipped step gives."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from planner.errors import UsageError
from planner.hooks.clock import StepClock
from planner.hooks.forecast import weights
from planner.hooks.grids import pictured
from planner.hooks.recorder import Recorder
from planner.passes import registry
from planner.passes.caching.sea_cache import SeaCacheSettings, filtered, masks
from planner.plans.graph import build
from planner.plans.plan import Plan
from tests.passes.driving import Bench, Executed, leftovers, unet_bench
from tests.passes.watching import Added
from tests.passes.whole import Around, Scripted, latents, on, played

PASS = registry.get("sea_cache")
EAGER = {"threshold": 100.0, "start": 0.0, "most": 2}


def by_formula(seen: Any, s: float) -> Any:
    """g(f) = (1 - s) P / ((1 - s)² P + s²), P = |f|^-3, over three axes, the mean made one."""
    gain = np.ones(())
    for axis in (-3, -2, -1):
        f = np.abs(np.fft.fftfreq(seen.shape[axis]))
        power = np.power(f, -3.0, where=f > 0, out=np.full_like(f, np.inf))
        along = np.full_like(f, 1 / (1 - s))  # the limit at f = 0
        known = (1 - s) * power[f > 0] / ((1 - s) ** 2 * power[f > 0] + s**2)
        along[f > 0] = known
        shape = [1, 1, 1]
        shape[axis] = -1
        gain = gain * along.reshape(shape)
    axes = (-3, -2, -1)
    return np.fft.ifftn(np.fft.fftn(seen, axes=axes) * (gain / gain.mean()), axes=axes).real


@pytest.mark.parametrize("level", [0.9, 0.5, 0.05])
@pytest.mark.parametrize("shape", [(2, 3, 1, 8, 6), (1, 4, 5, 7, 8)])
def test_the_filter_is_the_published_formula(shape: tuple[int, ...], level: float) -> None:
    seen = torch.randn(shape)
    expected = by_formula(seen.double().numpy(), level)
    assert np.allclose(filtered(seen, level).numpy(), expected, atol=1e-4)


def test_without_noise_all_is_seen_and_in_pure_noise_the_mean_alone() -> None:
    seen = torch.randn(1, 2, 1, 8, 8) + 3.0
    assert torch.allclose(filtered(seen, 0.0), seen, atol=1e-3)
    blind = filtered(seen, 1.0)
    mean = seen.mean((-3, -2, -1), keepdim=True)
    assert torch.allclose(blind / blind.mean((-3, -2, -1), keepdim=True),
                          torch.ones_like(blind), atol=1e-3)  # fmt: skip
    assert torch.allclose(blind.sign(), mean.sign().expand_as(blind))
    assert filtered(seen.half(), 0.5).dtype == torch.float32


def test_changes_are_gathered_from_step_to_step() -> None:
    """Even latents are their own mean: the filter scales them, by 64 at the top of a 4×4×4 grid."""
    values = [8.0, 8.4, 8.8, 9.2, 9.6, 10.0]
    shape = (1, 1, 4, 4, 4)
    seen = [filtered(latents(value, shape), level) for value, level in zip(
        values, torch.linspace(1, 0, 7).tolist(), strict=False)]  # fmt: skip
    changes = [float((b - a).abs().mean() / a.abs().mean()) for a, b in pairwise(seen)]
    threshold = changes[0] + changes[1] + changes[2] / 2  # the third step is the first too many
    denoiser = Scripted([1.0] * 6)
    settings = {"threshold": threshold, "start": 0.0, "most": 8}
    with on(denoiser, {"sea_cache": settings}, 6) as under:
        with under.clock.call():
            for value in values:
                denoiser(latents(value, shape))
                under.step()
        assert str(under.statistics["sea_cache"]["mask_single"]).startswith("1001")


def test_the_cap_the_start_and_the_last_step_hold_whatever_changes() -> None:
    for settings, expected in (
        (EAGER, "1001001001"), (EAGER | {"most": 8}, "1000000001"),
        (EAGER | {"most": 8, "start": 0.3}, "1110000001"), (EAGER | {"threshold": 0.0}, "1" * 10),
    ):
        denoiser = Scripted([1.0] * 10)
        with on(denoiser, {"sea_cache": settings}, 10) as under:
            played(under, denoiser, [5.0] * 10)
            assert under.statistics["sea_cache"]["mask_single"] == expected


def test_the_first_branch_of_a_step_decides_for_all_and_is_looked_at_once() -> None:
    denoiser = Scripted([1.0] * 20)
    with on(denoiser, {"sea_cache": EAGER}, 10) as under, under.clock.call():
        for step in range(10):
            denoiser(latents(5.0))
            denoiser(latents(1000.0 * (-1) ** step))
            under.step()
        counted = under.statistics["sea_cache"]
    assert counted["mask_single"] == counted["mask_single_2"] == "1001001001"


@pytest.mark.parametrize(("order", "expected"), [(0, [4, 2, 2, 8]), (1, [4, 2, 0, 8])])
def test_a_skipped_step_gives_the_forecast_over_the_noise_level(
    order: int, expected: list[float]
) -> None:
    denoiser = Scripted([4.0, 2.0, 8.0])
    settings = {"threshold": 100.0, "start": 0.5, "most": 8, "order": order}
    with on(denoiser, {"sea_cache": settings}, 4) as under:  # levels 1, 0.75, 0.5, 0.25
        assert played(under, denoiser, [5.0] * 4) == pytest.approx(expected)


@pytest.mark.parametrize("order", [0, 1])
def test_on_a_pipeline_a_skipped_step_gives_the_forecast(bench: Bench, order: int) -> None:
    with bench.put({"sea_cache": EAGER | {"order": order}}) as handle:
        with Around(bench.pipe.transformer) as seen, Executed(bench.pipe) as executed:
            bench.draw()
        counted = handle.stats["sea_cache"]
    mask, places = str(counted["mask_cond"]), [float(s) for s in bench.pipe.scheduler.sigmas]
    assert mask == counted["mask_uncond"] == "1001001001" and executed.forwards == 8
    for outputs in (seen.outputs[0::2], seen.outputs[1::2]):
        for step in (one for one in range(10) if mask[one] == "0"):
            known = [one for one in range(step) if mask[one] == "1"][-(order + 1) :]
            parts = weights([places[one] for one in known], places[step], order)
            guess = sum(p * outputs[one] for p, one in zip(parts, known, strict=True))
            assert torch.allclose(outputs[step], guess, atol=1e-5)


def test_of_a_residual_the_stack_alone_is_skipped(bench: Bench) -> None:
    settings = EAGER | {"tensor": "residual", "order": 0}
    with bench.put({"sea_cache": settings}) as handle:
        with Added(bench.pipe) as watched, Executed(bench.pipe) as executed:
            bench.draw()
        mask = str(handle.stats["sea_cache"]["mask_cond"])
    assert mask == "1001001001" and (executed.forwards, executed.stacks) == (20, 8)
    for added in watched.branches.values():
        for step in range(1, 10):
            same = torch.allclose(added[step], added[step - 1], atol=1e-5)
            assert same == (mask[step] == "0"), step


def test_after_steps_without_a_call_and_after_one_that_broke_off_it_begins_anew() -> None:
    denoiser = Scripted([1.0] * 30)
    with on(denoiser, {"sea_cache": EAGER | {"most": 8}}, 10) as under:
        played(under, denoiser, [5.0, 5.0, 5.0, None, None, 5.0, 5.0, 5.0, 5.0, 5.0])
        assert under.statistics["sea_cache"]["mask_single"] == "100--10001"
        with pytest.raises(InterruptedError), under.clock.call():
            denoiser(latents(5.0))
            raise InterruptedError
        played(under, denoiser, [5.0] * 10)
        assert under.statistics["sea_cache"]["mask_single"] == "1000000001"


def test_latents_of_another_shape_are_another_trajectory() -> None:
    denoiser = Scripted([1.0] * 10)
    with on(denoiser, {"sea_cache": EAGER | {"most": 8}}, 8) as under, under.clock.call():
        for size in (2, 2, 4, 4):
            denoiser(latents(5.0, (1, 4, 1, size, size)))
            under.step()
        assert under.statistics["sea_cache"]["mask_single"] == "1010"


def test_outside_a_pipeline_call_the_denoiser_always_runs() -> None:
    denoiser = Scripted([1.0] * 5)
    with on(denoiser, {"sea_cache": EAGER}, 8) as under:
        for _ in range(5):
            denoiser(latents(3.0))
        assert denoiser.ran == 5 and under.statistics["sea_cache"] == {}


def test_a_u_net_is_skipped_as_well_and_its_noise_is_a_part_of_one() -> None:
    bench = unet_bench()
    with bench.put({"sea_cache": EAGER}) as handle, Executed(bench.pipe) as executed:
        bench.draw()
        assert handle.stats["sea_cache"]["mask_single"] == "1001001001"
    assert executed.forwards == executed.stacks == 4 and leftovers(bench.pipe) == []
    why = build(bench.case).why_not(Plan.of({"sea_cache": {"tensor": "residual"}}))
    assert "sea_cache needs blocks that diffusers has registered" in str(why)
    assert "forecast the output instead (tensor: output)" in str(why)
    assert PASS.narrow is not None
    assert PASS.narrow(bench.case, None)["tensor"].choices == ("output",)


def test_levels_of_unscaled_noise_are_made_a_part_of_the_latents() -> None:
    clock, sigmas = StepClock(), torch.tensor([14.6, 3.0, 1.0, 0.25, 0.0])
    scheduler = SimpleNamespace(step=lambda: None, timesteps=[4, 3, 2, 1], sigmas=sigmas)
    clock.attach(scheduler)
    found = []
    for _ in range(4):
        found.append(clock.level)
        scheduler.step()
    assert found == pytest.approx([14.6 / 15.6, 0.75, 0.5, 0.2])
    scheduler.sigmas = None
    with clock.call():
        assert clock.level == 1.0
        scheduler.step()
        assert clock.level == 0.75


def test_the_simulation_reads_the_recorded_indicator(bench: Bench) -> None:
    seen = []
    with Around(bench.pipe.transformer) as around:
        bench.draw()
    sigmas = [float(one) for one in bench.pipe.scheduler.sigmas]
    ids = {"img_ids": bench.pipe._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32)}
    for step, one in enumerate(around.latents[0::2]):
        (grid,) = pictured((), {"hidden_states": one} | ids)
        level = min(sigmas[step], 1 - 1e-6)
        seen.append(torch.from_numpy(by_formula(grid.double().numpy(), level)))
    changes = [float((b - a).abs().mean() / a.abs().mean()) for a, b in pairwise(seen)]
    recorded = bench.telemetry.runs[0]["cond"]["sea_cache"].changes()
    assert recorded == pytest.approx(changes, rel=1e-3)
    bold = SeaCacheSettings(threshold=100.0, start=0.0, most=2)
    assert masks(bold, bench.telemetry) == [dict.fromkeys(("cond", "uncond"), "1001001001")]


def test_latents_of_which_nothing_tells_how_they_lie_are_no_reason_to_record_nothing() -> None:
    tokens = torch.randn(1, 6, 4)  # a sequence, and neither ids nor shapes
    assert PASS.probe is not None
    clock, module = StepClock(), Scripted([1.0] * 4)
    clock.attach(SimpleNamespace(step=lambda: None, timesteps=[1, 0]))
    pipe = SimpleNamespace(transformer=module)
    with Recorder(pipe, clock, {"sea_cache": PASS.probe}) as recorder, clock.call():
        for _ in range(2):
            module(tokens)
            clock._scheduler.step()
    (run,) = recorder.telemetry().runs
    assert set(run["single"]) == {"latents", "output"}
    lies = pytest.raises(UsageError, match="nothing tells how 6 latent tokens lie")
    with on(module, {"sea_cache": EAGER}, 4) as under, under.clock.call(), lies:
        module(tokens)
