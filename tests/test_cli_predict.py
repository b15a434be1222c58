"""`planner predict`: one model on one device, and a file of published rows."""

import json
from pathlib import Path

import pytest

from planner.cli.main import run
from tests.test_published import table

Shown = pytest.CaptureFixture[str]


def asked(shown: Shown, *arguments: str) -> str:
    assert run(["predict", *arguments]) == 0
    return shown.readouterr().out


def test_a_prediction_has_an_interval_and_says_what_it_rests_on(capsys: Shown) -> None:
    found = json.loads(asked(capsys, "sd1.5", "--target", "rtx-4090", "--json"))
    assert found["low"] < found["seconds"] < found["high"]
    assert found["rests_on"] == "this device"
    assert found["memory"]["weights"] > 2e9
    text = asked(capsys, "sd1.5", "--target", "rtx-5070", "--compiled")
    assert "predicted" in text and "published of its family" in text


def test_a_model_larger_than_the_device_is_said_not_to_fit(capsys: Shown) -> None:
    small = json.loads(asked(capsys, "sdxl", "--target", "t4", "--dtype", "float16", "--json"))
    assert small["fits"] and small["memory"]["total"] < 16 * 2**30
    assert "does not fit 8 GiB" in asked(
        capsys, "sdxl", "--target", "rtx-4060-laptop", "--dtype", "float32"
    )


def test_more_steps_take_longer_and_compiled_blocks_less_time(capsys: Shown) -> None:
    def seconds(*more: str) -> float:
        found = asked(capsys, "sd1.5", "--target", "a10", "--json", *more)
        return float(json.loads(found)["seconds"])

    usual = seconds()
    assert seconds("--steps", "100") > 1.5 * usual
    assert seconds("--compiled") < usual


def test_published_rows_are_judged_in_three_groups_and_the_rest_counted(
    tmp_path: Path, capsys: Shown
) -> None:
    file = table(
        tmp_path, {}, {"id": "two", "baseline_id": "one", "compile": "y", "latency_s": "0.5"},
        {"id": "three", "model": "Midjourney"}, {"latency_s": "soon"}, {"confidence": "C"},
    )  # fmt: skip
    found = json.loads(asked(capsys, "--validate", str(file), "--json"))
    assert found["baselines"]["n"] == 2 and found["ratios"]["n"] == 1
    assert found["memory"]["n"] == 2 and found["coverage"]["baselines"] == 1.0
    assert found["skipped"] == {"unknown model": 1, "confidence C": 1}
    assert found["faulty"] == ["line 5, column latency_s: this is no number ('soon')"]
    one = next(row for row in found["rows"] if row["group"] == "baselines")
    assert one["predicted"] / one["published"] - 1 == one["error"]
    assert "unknown model" in asked(capsys, "--validate", str(file))


@pytest.mark.parametrize(("arguments", "says"), [
    (["sd1.5"], "--target h100-sxm"), (["sd1.5", "--target", "h100"], "h100-pcie"),
    (["sd1.5", "--target", "t4", "--dtype", "bfloat16"], "ask for --dtype float16"),
    (["sd9", "--target", "t4"], "did you mean"),
])  # fmt: skip
def test_a_question_that_cannot_be_answered_says_how_to_ask(
    arguments: list[str], says: str, capsys: Shown
) -> None:
    assert run(["predict", *arguments]) == 2
    assert says in capsys.readouterr().err
