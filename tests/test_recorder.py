"""Reference runs are recorded as they are: every series against the tensors themselves."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch

from planner.case.telemetry import Series, group_residual
from planner.errors import TrialFailed
from planner.hooks.clock import StepClock
from planner.hooks.groups import groups
from planner.hooks.modulation import modulated_input
from planner.hooks.recorder import Forward, Recorder, _sampled
from planner.passes import registry
from planner.trials.reference import ReferenceCalls, probes
from tests.passes.driving import Bench, leftovers, shared_bench, traces, unet_bench
from tests.passes.watching import Added
from tests.test_families import denoiser

ALWAYS = {"latents", "output", "residual"}
TENSORS = ALWAYS | set(map(group_residual, range(4)))


@contextmanager
def recording(bench: Bench, **probes: Any) -> Iterator[tuple[Recorder, Any]]:
    with bench.framed() as (clock, render), Recorder(bench.pipe, clock, probes) as recorder:
        yield recorder, render


class Tensors:
    """Keeps what goes into a tiny Flux and its blocks, and what comes out."""

    def __init__(self, pipe: Any) -> None:
        self.seen: dict[str, list[torch.Tensor]] = {"latents": [], "output": [], "first": [],
                                                    "indicator": []}  # fmt: skip
        denoiser, block = pipe.transformer, pipe.transformer.transformer_blocks[0]
        self._hooks = [
            denoiser.register_forward_pre_hook(self._begin, with_kwargs=True),
            denoiser.register_forward_hook(self._end),
            block.register_forward_hook(self._block, with_kwargs=True),
        ]

    def _begin(self, module: Any, args: Any, kwargs: Any) -> None:
        self.seen["latents"].append(kwargs["hidden_states"].clone())

    def _end(self, module: Any, args: Any, output: Any) -> None:
        self.seen["output"].append(output[0].clone())

    def _block(self, block: Any, args: Any, kwargs: Any, output: Any) -> None:
        self.seen["first"].append(output[1] - kwargs["hidden_states"])
        self.seen["indicator"].append(modulated_input(block, args, kwargs))

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()


def expect_same(found: Series, tensors: Sequence[torch.Tensor], products: bool) -> None:
    """Compare a series with the tensors that it was made of."""
    steps = range(len(tensors))
    assert found.sizes == pytest.approx([float(one.abs().mean()) for one in tensors], rel=1e-5)
    for step in steps:
        apart = [float((tensors[step] - tensors[other]).abs().mean()) for other in range(step)]
        assert found.apart[step] == pytest.approx(apart, rel=1e-4, abs=1e-7)
    if products:
        exact = [one.double() for one in tensors]
        inner = [[float((exact[i] * exact[j]).mean()) for j in range(i + 1)] for i in steps]
        for row, mine in zip(inner, found.products, strict=True):
            assert mine == pytest.approx(row, rel=1e-5)
    else:
        assert found.products == ()
    lengths = [one.norm(dim=-1) for one in tensors]
    ratios = [float((now / last).mean()) for last, now in pairwise(lengths)]
    assert found.ratios == pytest.approx(ratios, rel=1e-4)


def test_every_series_is_what_a_naive_record_of_the_tensors_gives() -> None:
    bench = shared_bench()
    watched = Tensors(bench.pipe)
    with Added(bench.pipe) as stack:
        bench.draw()
    watched.stop()
    seen = watched.seen | {"residual": stack.added}
    run = bench.telemetry.runs[0]
    assert set(run) == {"cond", "uncond"} and len(bench.telemetry.runs) == 1
    names = {"latents": "latents", "output": "output", "residual": "residual",
             "first_block_cache": "first", "tea_cache": "indicator"}  # fmt: skip
    probing = {one.name for one in registry.all_passes() if one.probe}
    assert set(names) <= TENSORS | probing == set(run["cond"]) == set(run["uncond"])
    for name, mine in names.items():
        for index, branch in enumerate(("cond", "uncond")):
            expect_same(run[branch][name], seen[mine][index::2], name in ("output", "residual"))


def test_places_are_the_noise_levels_of_the_schedule() -> None:
    bench = shared_bench()
    sigmas = [float(one) for one in bench.pipe.scheduler.sigmas[:-1]]
    assert bench.telemetry.steps == 10 == len(sigmas)
    assert bench.telemetry.places == pytest.approx(sigmas)


def test_what_is_recorded_changes_no_image_and_leaves_nothing() -> None:
    bench = shared_bench()
    untouched = bench.untouched
    with recording(bench) as (recorder, render):
        render()
        assert torch.equal(bench.draw(), untouched)
        clock: Any = recorder._clock
    assert leftovers(bench.pipe) == [] and clock._resets == []
    assert torch.equal(bench.draw(), untouched)


def test_an_error_in_a_recorded_call_leaves_nothing_either() -> None:
    bench = shared_bench()

    def stop(forward: Forward) -> Any:
        if forward.clock.step == 3:
            raise InterruptedError("in the middle")
        return forward.first

    with pytest.raises(InterruptedError), recording(bench, stops=stop) as (_, render):
        render()
    assert leftovers(bench.pipe) == [] and torch.equal(bench.draw(), bench.untouched)


@pytest.mark.parametrize("beneath", [
    {"guidance_interval": {"start": 0.3, "stop": 0.7}}, {"uncond_cache": {"interval": 2}},
])  # fmt: skip
def test_a_branch_that_did_not_run_throughout_is_left_out(
    beneath: dict[str, dict[str, Any]],
) -> None:
    bench = shared_bench()
    with bench.put(beneath), bench.framed() as (clock, render):
        found = ReferenceCalls(bench.pipe, clock, render, bench.case, {}, "").telemetry()
    assert [set(run) for run in found.runs] == [{"cond"}] and found.steps == 10
    assert set(found.runs[0]["cond"]) == set(bench.telemetry.runs[0]["cond"])


def test_every_call_inside_is_a_run_and_calls_outside_a_frame_are_none() -> None:
    bench = shared_bench()
    with recording(bench) as (recorder, render):
        bench.draw()  # nobody says where this call begins
        render()
        render()
        assert len(recorder.telemetry().runs) == 2
    one, two = recorder.telemetry().runs
    assert one == two


def test_a_call_of_one_step_or_none_is_refused() -> None:
    bench = shared_bench()
    with recording(bench) as (recorder, _):
        with pytest.raises(TrialFailed, match="showed 0 steps") as caught:
            recorder.telemetry()
        with recorder._clock.call():
            bench.draw(num_inference_steps=1)
        with pytest.raises(TrialFailed, match="showed 1 steps"):
            recorder.telemetry()
    assert caught.value.stage == "calibrate" and "at least 2 steps" in caught.value.way_out


def test_a_denoiser_without_known_blocks_shows_latents_and_output_alone() -> None:
    bench, seen = unet_bench(), []

    def probe(forward: Forward) -> Any:
        seen.append((forward.block, forward.first, len(forward.args)))
        return forward.args[0]

    taken: list[torch.Tensor] = []
    hook = bench.pipe.unet.register_forward_hook(
        lambda module, args, output: taken.append(output[0].clone())
    )
    with recording(bench, probed=probe) as (recorder, render):
        render()
    hook.remove()
    (run,) = recorder.telemetry().runs
    assert {name: set(one) for name, one in run.items()} == {
        "single": {"latents", "output", "probed"}
    }
    expect_same(run["single"]["output"], taken, products=True)
    assert run["single"]["probed"] == run["single"]["latents"]
    assert len(seen) == 10 and set(seen) == {(None, None, 2)}
    assert traces(bench.pipe.unet) == []


@pytest.mark.parametrize("name", ["QwenImageTransformer2DModel", "ZImageTransformer2DModel",
                                  "HunyuanVideoTransformer3DModel"])  # fmt: skip
def test_other_families_show_all_three_and_branches_by_their_order(name: str) -> None:
    module, call = denoiser(name)
    pipe, scheduler = type("Pipe", (), {"transformer": module})(), Scheduler()
    clock = StepClock()
    detach = clock.attach(scheduler)
    with Recorder(pipe, clock, {}) as recorder, clock.call():
        for _ in range(3):
            call()
            call()
            scheduler.step()
    detach()
    (run,) = recorder.telemetry().runs
    shown = ALWAYS | set(map(group_residual, range(len(groups(module)))))
    assert {branch: set(one) for branch, one in run.items()} == {
        "single": shown, "single_2": shown,
    }  # fmt: skip
    assert run["single"] == run["single_2"], "the same arguments every time"
    assert recorder.telemetry().places == (0.0, 1.0, 2.0), "no levels: steps are counted"


class Scheduler:
    """Steps without noise levels."""

    timesteps = (3, 2, 1)

    def step(self) -> None: ...


def test_of_a_large_tensor_rows_are_taken_evenly_and_few() -> None:
    video = torch.arange(3 * 200_000 * 4, dtype=torch.float32).reshape(3, 200_000, 4)
    found = _sampled(video)
    assert found.shape[1] == 4 and 2**16 < found.numel() <= 2**17
    apart = found[1:, 0] - found[:-1, 0]
    assert (apart == apart[0]).all() and float(found[0, 0]) == 0.0
    assert found[-1, 0] > 0.99 * video.max()
    small = torch.randn(2, 5, 4)
    assert torch.equal(_sampled(small), small.reshape(10, 4))
    assert torch.equal(_sampled([small, small[0]]), torch.cat([small.reshape(10, 4), small[0]]))


def test_what_is_no_number_becomes_large_and_can_be_written() -> None:
    def broken(forward: Forward) -> Any:
        return forward.kwargs["hidden_states"] * (float("nan") if forward.clock.step == 4 else 1)

    with recording(shared_bench(), broken=broken) as (recorder, render):
        render()
    found = recorder.telemetry()
    series = found.runs[0]["cond"]["broken"]
    assert series.sizes[4] == 1e30 and series.changes()[3] == 1e6
    assert type(found).model_validate_json(found.model_dump_json()) == found


def test_reference_calls_are_recorded_once_for_all_who_ask() -> None:
    bench, calls = shared_bench(), []
    with bench.framed() as (clock, render):
        def counted() -> None:
            calls.append(1)
            render()

        memo: dict[Any, Any] = {}
        first = ReferenceCalls(bench.pipe, clock, counted, bench.case, memo, "a")
        again = ReferenceCalls(bench.pipe, clock, counted, bench.case, memo, "a")
        other = ReferenceCalls(bench.pipe, clock, counted, bench.case, memo, "b")
        assert first.telemetry() is first.telemetry() is again.telemetry() and len(calls) == 1
        assert other.telemetry() == first.telemetry() and len(calls) == 2


def test_only_passes_that_are_legal_here_probe() -> None:
    probing = {one.name for one in registry.all_passes() if one.probe}
    assert set(probes(shared_bench().case)) == probing
    assert "tea_cache" not in probes(unet_bench().case) and "sea_cache" in probes(unet_bench().case)
