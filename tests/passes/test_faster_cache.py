"""Attention at every second step, drawn out along a line in between."""

from typing import Any

import pytest
import torch

from planner.hooks import attention
from planner.passes import registry
from planner.passes.caching.faster_cache import FasterCacheSettings, drawn_out, runs
from tests.passes.driving import Bench, traces
from tests.passes.parts import attention_ran, flops, put_inside, said
from tests.test_families import FAMILIES, denoiser

PASS = registry.get("faster_cache")


def test_every_second_step_is_left_out_from_the_start_on() -> None:
    def mask(**settings: Any) -> str:
        chosen = FasterCacheSettings(**settings)
        return "".join("01"[runs(chosen, step, 20)] for step in range(20))

    assert mask() == "11111110101010101010"
    assert mask(start=0.5, stop=0.8) == "11111111111010101111"


def test_outputs_go_on_along_their_line_by_the_weight() -> None:
    older, newer = torch.full((1, 2), 1.0), torch.full((1, 2), 3.0)
    assert torch.equal(drawn_out((older, newer), 0.0), newer)
    assert torch.equal(drawn_out((older, newer), 0.5), torch.full((1, 2), 4.0))
    image, text = drawn_out(((older, newer), (newer, older)), 1.0)
    assert torch.equal(image, torch.full((1, 2), 5.0)) and torch.equal(text, -older)
    assert drawn_out(((older, None), (newer, None)), 0.5)[1] is None


def test_the_weight_is_the_share_of_the_schedule_that_is_over(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    real = drawn_out

    def watched(outputs: Any, weight: float) -> Any:
        seen.append(weight)
        return real(outputs, weight)

    monkeypatch.setattr("planner.passes.caching.faster_cache.drawn_out", watched)
    with bench.put({"faster_cache": {}}):
        bench.draw()
    assert sorted(set(seen)) == pytest.approx([4 / 9, 6 / 9, 8 / 9])


@pytest.mark.parametrize("settings", [{}, {"start": 0.0, "stop": 0.8}])
def test_the_effect_spares_what_is_really_spared(bench: Bench, settings: dict[str, Any]) -> None:
    untouched = flops(bench)
    with bench.put({"faster_cache": settings}) as handle:
        spared = untouched - flops(bench)
        found = handle.stats["faster_cache"]
    after = PASS.effect(bench.work, PASS.settings(**settings), None)
    assert spared == pytest.approx(said(bench.work) - said(after), rel=1e-6) and spared > 0
    wanted = "1111010101" if not settings else "1110101011"
    assert found["mask_cond"] == found["mask_uncond"] == wanted


def test_the_effect_holds_two_outputs_of_every_module(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    real = attention._Outputs.keep

    def keep(outputs: Any, place: int, made: Any) -> None:
        real(outputs, place, made)
        held.append(sum(len(known) for branch in outputs._branches._states.values()
                        for known in branch.values()))  # fmt: skip

    monkeypatch.setattr(attention._Outputs, "keep", keep)
    with bench.put({"faster_cache": {}}):
        bench.draw()
    assert max(held) == 2 * 2 * 4  # outputs, branches, modules
    broadcast = registry.get("pyramid_attention_broadcast")
    once = broadcast.effect(bench.work, broadcast.settings(), None).kept
    assert PASS.effect(bench.work, PASS.settings(), None).kept == pytest.approx(2 * once)


# Mochi asks for autocast in float32, which a CPU has not: it says so and computes in float32.
@pytest.mark.filterwarnings("ignore:In CPU autocast")
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_same_from_the_same_input_without_running_attention(
    name: str,
) -> None:
    module, call = denoiser(name)
    untouched = call()
    plan = {"faster_cache": {"start": 0.0}}
    with attention_ran(module) as ran, put_inside(module, 9, plan) as (_, step):
        for at in range(9):
            ran.clear()
            assert torch.allclose(call(), untouched, rtol=1e-4, atol=1e-5)
            assert (not ran) == (at in (3, 5, 7))
            step()
    assert traces(module) == [] and torch.equal(call(), untouched)


def test_a_stretch_that_is_too_short_is_said(bench: Bench) -> None:
    untouched = bench.untouched
    with bench.put({"faster_cache": {"start": 0.8, "stop": 0.9}}) as handle:
        assert torch.equal(bench.draw(), untouched)
        assert handle.complaints() == {
            "faster_cache": "faster_cache reused none of 20 forwards at start 0.8"
        }
