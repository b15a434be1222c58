"""What is legal on a device that is not here is asked of a model's configs alone."""

import json

import pytest

from planner.catalog.devices import card
from planner.cli.main import run
from planner.plans.graph import build
from planner.tuning.target import case_on

Shown = pytest.CaptureFixture[str]


def graph(shown: Shown, model: str, target: str) -> dict[str, object]:
    assert run(["graph", model, "--target", target, "--json"]) == 0
    found: dict[str, object] = json.loads(shown.readouterr().out)
    return found


def test_narrow_formats_are_legal_only_where_the_target_has_them(capsys: Shown) -> None:
    newest, old = (graph(capsys, "flux.1-schnell", name) for name in ("b200", "t4"))
    assert newest["device"] == "B200" and "nvfp4" in newest["legal"]  # type: ignore[operator]
    excluded = old["excluded"]
    assert isinstance(excluded, dict)
    assert "compute capability 8.9 or newer; this device has 7.5" in str(excluded["fp8_dynamic"])
    assert "nvfp4" in excluded and "int8_weight" in old["legal"]  # type: ignore[operator]


def test_a_target_case_knows_structure_and_call_but_no_weights() -> None:
    case = case_on("sdxl", card("rtx-4090"), steps=20)
    assert case.model.traits.denoiser == "unet"
    assert case.model.pipeline == "StableDiffusionXLPipeline"
    assert case.workload.steps == 20 and case.device.capability == (8, 9)
    assert all(one.weights is None for one in case.model.components.values())
    assert "tea_cache" in build(case).excluded


def test_an_unknown_target_or_model_is_refused(capsys: Shown) -> None:
    assert run(["graph", "sdxl", "--target", "h100"]) == 2
    assert "h100-sxm" in capsys.readouterr().err
    assert run(["graph", "sdxxl", "--target", "t4"]) == 2
    assert "did you mean sdxl" in capsys.readouterr().err
