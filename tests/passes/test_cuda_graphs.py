"""A forward recorded once for each form of its inputs.

Without a GPU a recording is a list of what to do again: what is copied, kept apart and forgotten is
the same, and the device's own recording is the one thing that is not tested here.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from planner.case.goal import Goal
from planner.errors import UsageError
from planner.hooks.beneath import beneath_hooks, own_forward
from planner.passes import registry
from planner.passes.compilation import cuda_graphs
from planner.passes.compilation.cuda_graphs import MOST_FORMS, Recorder
from planner.plans.graph import build
from planner.plans.plan import Plan
from planner.plans.seeds import seeds
from tests.passes.driving import Bench, declared_bench
from tests.passes.gpus import gpu, heavy_work, on_gpu

PASS = registry.get("cuda_graphs")


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A recording that runs the forward again on its own inputs, into the same outputs."""
    events: list[str] = []

    def record(run: Callable[[], Any], device: Any) -> Any:
        events.append("record")
        outputs = run()

        def replay() -> None:
            events.append("replay")
            for mine, new in zip(outputs, run(), strict=True):
                mine.copy_(new)

        return outputs, replay

    monkeypatch.setattr(cuda_graphs, "record", record)
    yield events


def test_replays_draw_the_same_picture_with_one_recording_for_both_branches(
    bench: Bench, tape: list[str]
) -> None:
    untouched = bench.draw()
    recorder = Recorder(bench.pipe.transformer.forward, statistics := {})
    vars(bench.pipe.transformer)["forward"] = recorder
    try:
        assert torch.equal(bench.draw(), untouched)
    finally:
        del bench.pipe.transformer.forward
    assert tape == ["record"] + ["replay"] * 20
    assert statistics == {"graphs": 1, "replays": 20, "eager": 0}


@pytest.mark.parametrize(("name", "settings"), [
    ("step_mask", {"share": 0.4}), ("easy_cache", {"threshold": 0.6}),
    ("sea_cache", {"threshold": 100.0, "start": 0.0, "most": 2}), ("uncond_cache", {}),
])  # fmt: skip
def test_what_is_decided_around_a_recorded_forward_stays_a_decision(
    bench: Bench, tape: list[str], name: str, settings: dict[str, Any]
) -> None:
    denoiser = bench.pipe.transformer
    with bench.put({name: settings}) as handle:
        expected, stats = bench.draw(), dict(handle.stats[name])
        put_back = beneath_hooks(denoiser, Recorder(own_forward(denoiser), counted := {}))
        try:
            assert torch.equal(bench.draw(), expected) and handle.stats[name] == stats
        finally:
            put_back()
    assert counted["graphs"] == 1 and counted["eager"] == 0
    assert 0 < counted["replays"] == tape.count("replay") < 20


def test_outputs_outlive_the_next_replay_and_other_forms_are_recorded_anew(
    tape: list[str],
) -> None:
    recorder = Recorder(lambda x, scale: (x * scale,), {})
    ones, twos = torch.ones(2), torch.full((2,), 2.0)
    first = recorder(ones, scale=3.0)[0]
    second = recorder(twos, scale=3.0)[0]
    assert first.tolist() == [3, 3] and second.tolist() == [6, 6]
    assert recorder(torch.ones(3), scale=3.0)[0].tolist() == [3, 3, 3]
    assert recorder(ones, scale=4.0)[0].tolist() == [4, 4]
    assert tape.count("record") == 3


def test_forms_beyond_the_limit_and_unknown_inputs_run_as_they_are(tape: list[str]) -> None:
    recorder = Recorder(lambda x, other=None: (x,), statistics := {})
    for size in range(1, MOST_FORMS + 3):
        recorder(torch.ones(size))
    recorder(torch.ones(1), other=object())
    assert (statistics["graphs"], statistics["eager"]) == (MOST_FORMS, 3)


def test_a_cpu_records_nothing_and_says_so(bench: Bench) -> None:
    with pytest.raises(UsageError, match="cannot record a forward on the cpu") as caught:
        declared_bench().put({"cuda_graphs": {}})
    assert caught.value.value == "cpu" and "move the pipeline" in caught.value.way_out
    assert PASS.missing(bench.case) == ("cuda_graphs needs a CUDA device; this one is a cpu",)


@pytest.mark.parametrize(("other", "said"), [
    ("tea_cache", "would replay what tea_cache decided at the first step"),
    ("first_block_cache", "would replay what first_block_cache decided"),
    ("pyramid_attention_broadcast", "would replay what pyramid_attention_broadcast decided"),
    ("modulation_cache", "would replay what modulation_cache decided at the first step"),
    ("group_offload", "and group_offload moves them"),
    ("model_offload", "and model_offload moves them"),
])  # fmt: skip
def test_what_decides_on_the_host_or_moves_weights_is_refused(other: str, said: str) -> None:
    why = build(on_gpu()).why_not(Plan.of({"cuda_graphs": {}, other: {}}))
    assert why is not None and said in why


@pytest.mark.parametrize("other", ["text_encoder_offload", "compile_blocks", "steps"])
def test_what_leaves_the_forward_alone_is_not(other: str) -> None:
    assert build(on_gpu()).why_not(Plan.of({"cuda_graphs": {}, other: {}})) is None


def test_a_free_pass_gives_way_to_it_in_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.plans.seeds.MOST", 99)
    found = seeds(build(on_gpu()), on_gpu(), Goal(max_lpips=0.1))
    alone = [plan for plan in found if "cuda_graphs" in plan]
    assert alone and not any("modulation_cache" in plan for plan in alone)
    assert all("modulation_cache" in plan for plan in found if plan not in alone)


def test_an_older_torch_has_no_such_graphs() -> None:
    assert "torch is 2.8.0" in build(on_gpu(gpu((9, 0), torch="2.8.0"))).excluded["cuda_graphs"]


def test_only_the_denoisers_launches_are_captured() -> None:
    after = PASS.effect(heavy_work(), PASS.settings(), None)
    assert [phase.captured for phase in after.phases] == [False, True, True, False]
    assert PASS.observe is not None
    said = PASS.observe(PASS.settings(), {"replays": 0, "eager": 9}, on_gpu().workload)
    assert said == "cuda_graphs replayed none of 9 forwards"
