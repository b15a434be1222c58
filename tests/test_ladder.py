"""The ladder on a device that is not here: rung by rung, until the goal is met."""

import json
from itertools import pairwise
from typing import Any

import pytest

from planner.cli.main import run

Shown = pytest.CaptureFixture[str]


def planned(shown: Shown, *arguments: str) -> dict[str, Any]:
    assert run(["plan", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(shown.readouterr().out)
    return found


def test_a_card_of_12_gib_gets_a_ladder_that_fits_it(capsys: Shown) -> None:
    found = planned(capsys, "sd3.5-large", "--target", "rtx-4070", "--vram", "12GiB")
    names = [rung["name"] for rung in found["rungs"]]
    assert names == ["untouched", "quantize", "fit"] and found["meets"]
    untouched, quantized, last = found["rungs"]
    assert untouched["lacks"] > quantized["lacks"] > 0 == last["lacks"]
    assert last["memory"] <= 12 * 2**30
    assert found["status"] == "predicted" and "nvfp4" in found["excluded"]


def test_without_quantization_it_says_by_how_much_the_model_does_not_fit(capsys: Shown) -> None:
    left_out = [w for name in ("int8_dynamic", "int8_weight", "fp8_dynamic", "fp8_storage",
                               "group_offload") for w in ("--without", name)]  # fmt: skip
    arguments = ["plan", "sd3.5-large", "--target", "rtx-4070", "--vram", "12GiB", *left_out]
    assert run(arguments) == 0
    text = capsys.readouterr().out
    assert "no rung fits the memory: the last lacks" in text


def test_each_rung_stands_on_the_one_below_and_takes_less_time(capsys: Shown) -> None:
    found = planned(capsys, "flux.1-dev", "--target", "h100-sxm", "--budget", "2s")
    rungs = found["rungs"]
    assert [rung["name"] for rung in rungs] == ["untouched", "quantize", "cache", "steps"]
    times = [rung["seconds"] for rung in rungs]
    assert times == sorted(times, reverse=True) and times[-1] <= 2 and found["meets"]
    for below, rung in pairwise(rungs):
        assert set(below["passes"]) <= set(rung["passes"])
        assert rung["low"] < rung["seconds"] < rung["high"]
    assert "unknown" in rungs[-1]["quality"] and rungs[0]["usd_per_1000"] > 0
    assert rungs[0]["anchors"] == []
    new = ("fp8_dynamic", "first_block_cache", "steps")
    for rung, technique in zip(rungs[1:], new, strict=True):
        assert {one["technique"] for one in rung["anchors"]} == {technique}
        assert all(one["sources"] and one["low"] <= one["high"] for one in rung["anchors"])
        assert "published: LPIPS" in rung["quality"]
    assert [point["memory"] for point in found["front"]] == sorted(
        (point["memory"] for point in found["front"]), reverse=True
    )


def test_the_notes_name_released_students(capsys: Shown) -> None:
    assert run(["plan", "sd3.5-large", "--target", "h200"]) == 0
    text = capsys.readouterr().out
    assert "distillation: not on the ladder yet; released students of this model: " in text
    assert "stabilityai/stable-diffusion-3.5-large-turbo (4 steps)" in text
    assert run(["plan", "sd1.5", "--target", "rtx-4090"]) == 0
    assert "released students of this model: none known" in capsys.readouterr().out


def test_a_goal_that_the_model_meets_already_needs_no_rung(capsys: Shown) -> None:
    found = planned(capsys, "sd1.5", "--target", "rtx-4090", "--budget", "60s", "--price", "3.6")
    assert [rung["name"] for rung in found["rungs"]] == ["untouched"] and found["meets"]
    assert found["rungs"][0]["usd_per_1000"] == pytest.approx(found["rungs"][0]["seconds"])


def test_a_budget_below_what_one_step_takes_says_the_floor(capsys: Shown) -> None:
    assert run(["plan", "sdxl", "--target", "t4", "--budget", "1ms"]) == 0
    said = capsys.readouterr().out
    assert "no rung meets the goal: one step of the last rung takes" in said
    assert " of it to decode" in said
    assert run(["plan", "sdxl", "--target", "t44"]) == 2


def test_a_format_that_takes_longer_is_no_rung_where_all_fits_without_it(capsys: Shown) -> None:
    found = planned(capsys, "sdxl", "--target", "t4", "--budget", "20s")
    assert [rung["name"] for rung in found["rungs"]] == ["untouched", "cache", "steps"]
    assert found["rungs"][1]["passes"] == {"deep_cache": {"interval": 3}}
    assert sum(found["floor"].values()) == pytest.approx(found["floor_seconds"])


def test_without_a_goal_every_rung_is_shown_that_changes_no_steps(capsys: Shown) -> None:
    found = planned(capsys, "flux.1-dev", "--target", "h100-sxm")
    assert [rung["name"] for rung in found["rungs"]] == ["untouched", "quantize", "cache"]
    assert found["meets"]
