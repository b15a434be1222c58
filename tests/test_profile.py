"""`planner profile`: recorded calls, what every cache would make of them, and the picture."""

import json
from pathlib import Path
from typing import Any

import pytest

from planner.cli.main import run
from planner.measure.images import load_png

STEPS = 10
CALLS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profile")


def arguments(folder: Path, *more: str) -> list[str]:
    texts = folder / "prompts.txt"
    texts.write_text("\n".join(f"a red circle and {n} stars" for n in range(40)), encoding="utf-8")
    return ["profile", "tests.tiny:tiny_flux", "--steps", str(STEPS), "--prompts", str(texts),
            "--calls", str(CALLS), "--out", str(folder), *more]  # fmt: skip


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    """The document of one recording, which every test reads."""
    with pytest.MonkeyPatch.context() as patch:
        kept: list[str] = []
        patch.setattr("click.echo", lambda text="", **_: kept.append(str(text)))
        assert run(arguments(folder, "--json")) == 0
    return dict(json.loads("".join(one for one in kept if one.startswith("{"))))


def test_every_simulated_setting_says_which_steps_it_computes(found: dict[str, Any]) -> None:
    names = {cache["name"] for cache in found["caches"]}
    assert {"tea_cache", "mag_cache", "first_block_cache", "step_mask", "taylor_seer"} <= names
    for cache in found["caches"]:
        assert cache["points"], cache["name"]
        for point in cache["points"]:
            done = point["simulated"]
            masks = [mask for call in done["masks"] for mask in call.values()]
            assert len(done["masks"]) == CALLS
            assert {len(mask) for mask in masks} == {STEPS}
            assert done["low"] <= done["computed"] <= done["high"] <= STEPS
            assert done["computed"] == pytest.approx(
                sum(mask.count("1") for mask in masks) / len(masks)
            )


def test_a_bolder_threshold_never_computes_more_steps(found: dict[str, Any]) -> None:
    for name in ("tea_cache", "mag_cache", "first_block_cache"):
        (cache,) = (one for one in found["caches"] if one["name"] == name)
        if cache["low"] is None:
            continue  # inert in these calls, and said to be so
        counts = [point["simulated"]["computed"] for point in cache["points"]]
        assert counts == sorted(counts, reverse=True), name
        assert counts[0] > counts[-1], f"{name} changes nothing inside its own interval"


def test_intervals_cliffs_and_changes_belong_together(found: dict[str, Any]) -> None:
    for cache in found["caches"]:
        if cache["changes"] is not None:
            assert cache["changes"] == sorted(cache["changes"]), cache["name"]
        if cache["low"] is not None and cache["cliff"] is not None:
            assert cache["low"] <= cache["cliff"] <= cache["high"] * 1.001, cache["name"]
    (watched,) = (one for one in found["caches"] if one["name"] == "first_block_cache")
    assert watched["changes"][0] > 0 and watched["cliff"] > watched["low"]
    assert watched["low"] < watched["changes"][2], "a change that large is skipped at none below"


def test_legal_caches_that_no_recording_tells_of_are_named(found: dict[str, Any]) -> None:
    assert {"pyramid_attention_broadcast", "faster_cache"} <= set(found["blind"])
    assert all("is not simulated" in said for said in found["blind"].values())


def test_what_is_not_legal_is_named_with_its_reason(found: dict[str, Any]) -> None:
    assert "deep_cache" in found["excluded"]
    assert "UNet" in found["excluded"]["deep_cache"]


def test_the_curves_come_as_a_picture(found: dict[str, Any]) -> None:
    pixels = load_png(Path(found["picture"]))
    assert min(pixels.shape[:2]) > 300 and pixels.std() > 1


def test_passes_that_may_not_stand_there_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    caches = ("--under", "tea_cache", "--under", "mag_cache")
    assert run(arguments(folder, *caches)) == 2
    said = capsys.readouterr().err
    assert "is not legal here" in said and "tea_cache" in said
