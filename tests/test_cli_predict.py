"""`planner predict`: one model on one device, and a file of published rows."""

import json
from pathlib import Path

from click.testing import CliRunner, Result

from planner.cli.main import cli
from tests.test_published import table


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["predict", *arguments])


def test_a_prediction_has_an_interval_and_says_what_it_rests_on() -> None:
    found = json.loads(run("sd1.5", "--target", "rtx-4090", "--json").stdout)
    assert found["low"] < found["seconds"] < found["high"]
    assert found["rests_on"] == "this device"
    assert found["memory"]["weights"] > 2e9
    text = run("sd1.5", "--target", "rtx-5070", "--compiled").stdout
    assert "predicted" in text and "published of its family" in text


def test_more_steps_take_longer_and_compiled_blocks_less_time() -> None:
    def seconds(*more: str) -> float:
        return float(json.loads(run("sd1.5", "--target", "a10", "--json", *more).stdout)["seconds"])

    usual = seconds()
    assert seconds("--steps", "100") > 1.5 * usual
    assert seconds("--compiled") < usual


def test_published_rows_are_judged_in_three_groups_and_the_rest_counted(tmp_path: Path) -> None:
    file = table(
        tmp_path, {}, {"id": "two", "baseline_id": "one", "compile": "y", "latency_s": "0.5"},
        {"id": "three", "model": "Midjourney"}, {"latency_s": "soon"}, {"confidence": "C"},
    )  # fmt: skip
    found = json.loads(run("--validate", str(file), "--json").stdout)
    assert found["baselines"]["n"] == 2 and found["ratios"]["n"] == 1
    assert found["memory"]["n"] == 2 and found["coverage"]["baselines"] == 1.0
    assert found["skipped"] == {"unknown model": 1, "confidence C": 1}
    assert found["faulty"] == ["line 5, column latency_s: this is no number ('soon')"]
    one = next(row for row in found["rows"] if row["group"] == "baselines")
    assert one["predicted"] / one["published"] - 1 == one["error"]
    text = run("--validate", str(file))
    assert "unknown model" in text.stdout and text.exit_code == 0


def test_a_question_without_model_or_device_says_how_to_ask() -> None:
    found = run("sd1.5")
    assert found.exit_code == 2 and "--target h100-sxm" in str(found.exception or found.output)
    assert run("sd1.5", "--target", "h100").exit_code == 2
    assert run("sd9", "--target", "t4").exit_code == 2
