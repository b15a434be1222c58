"""Published anchors: strict, sourced, of passes that exist, and never mixed between metrics."""

from pathlib import Path

import pytest

from planner.catalog import quality
from planner.catalog.reader import known
from planner.errors import InvalidFile
from planner.passes import registry

OUTSIDE = {"LTX-2", "MiniMax-H3", "Open-Sora 1.2"}
"""Models of the sources that the catalogue does not have."""


def test_every_anchor_is_of_a_pass_and_has_a_model_and_a_source() -> None:
    for one in quality.anchors():
        assert one.technique in registry.names() and one.source
        assert one.model in OUTSIDE or one.model in known()
        assert one.metric in ("PSNR", "ImageReward") or 0 < one.value < 1
        assert (one.untouched is not None) == (one.metric == "ImageReward")
        assert one.speedup is None or one.speedup > 1


def test_a_model_s_own_anchors_come_before_those_of_others() -> None:
    (lpips, reward) = quality.published("tea_cache", "flux.1-dev")
    assert lpips.same_model and lpips.models == ("flux.1-dev",)
    assert (lpips.low, lpips.high, lpips.speedup) == (0.2687, 0.3456, (2.0, 2.52))
    assert str(lpips) == ("LPIPS 0.269 to 0.346 for tea_cache on flux.1-dev at 2 to 2.52× "
                          "[arXiv 2506.09045]")  # fmt: skip
    assert "ImageReward 0.739 (untouched 1.04)" in str(reward)
    (other,) = quality.published("first_block_cache", "qwen-image")
    assert not other.same_model and "on other models: flux.1-dev at 1.4×" in str(other)


def test_lpips_of_two_networks_are_two_ranges() -> None:
    metrics = [one.metric for one in quality.published("fp8_dynamic", "sdxl")]
    assert metrics == ["LPIPS", "LPIPS (VGG)"]
    said = quality.sentence(["fp8_dynamic", "int8_weight"], "sdxl")
    assert said.startswith("published: LPIPS 0.04 to 0.465") and "VGG" not in said
    assert said.endswith("; nothing published for int8_weight")


def test_a_speed_up_is_said_where_every_anchor_has_one() -> None:
    found = quality.published("tea_cache", "sdxl")
    assert found[0].speedup is None and quality.published("steps", "qwen-image")[0].speedup


def test_an_unknown_key_in_the_anchors_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "quality.yaml"
    file.write_text("steps:\n  - {model: sdxl, setting: few, metric: LPIPS, value: 0.3}\n")
    with pytest.raises(InvalidFile, match=r"steps: source is wrong \(field required\)") as caught:
        quality.read_anchors(file)
    assert caught.value.value and caught.value.way_out.startswith("restore the file")
