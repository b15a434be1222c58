"""Seconds, guards and pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.errors import InvalidFile, TrialFailed
from planner.measure.images import check_images, load_png, save_png, to_pixels
from planner.measure.timing import timed, warm
from planner.run.devices.cpu import CpuBackend

IMAGES = Path(__file__).parent / "images"


class Watched(CpuBackend):
    """A CPU that writes down when it was asked to finish."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def synchronize(self) -> None:
        self.log.append("idle")


def test_a_call_is_timed_with_the_device_idle_on_both_sides() -> None:
    device = Watched()
    seconds, result = timed(lambda: device.log.append("call") or "done", device)
    assert device.log == ["idle", "call", "idle"] and result == "done" and seconds >= 0


def calls_taking(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """Let the clock say that the coming calls take so long."""
    from planner.measure import timing

    now = 0.0
    ticks = []
    for each in seconds:
        ticks += [now, now + each]
        now += each
    monkeypatch.setattr(timing, "perf_counter", iter(ticks).__next__)


def test_warming_ends_when_two_calls_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    calls_taking(monkeypatch, 9.0, 2.0, 1.0, 1.01, 1.0)
    warmth = warm(lambda: None, CpuBackend(), tolerance=0.02, most=9)
    assert warmth.first_seconds == 9.0 and warmth.steady
    assert warmth.later_seconds == pytest.approx((2.0, 1.0, 1.01))


def test_warming_gives_up_after_the_most_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    calls_taking(monkeypatch, 1.0, 1.0, 2.0, 4.0)
    warmth = warm(lambda: None, CpuBackend(), tolerance=0.02, most=4)
    assert not warmth.steady and warmth.later_seconds == pytest.approx((1.0, 2.0, 4.0))


def picture() -> Any:
    return load_png(IMAGES / "scene.png").astype(np.float64) / 255


def spoilt(how: str) -> Any:
    image = picture()
    if how == "nan":
        image[3, 4, 0] = np.nan
    if how == "inf":
        image[0, 0] = np.inf
    return {
        "black": image * 0.01, "grey": np.full_like(image, 0.5), "burnt": np.round(image),
    }.get(how, image)  # fmt: skip


def test_a_healthy_picture_passes_the_guards() -> None:
    check_images([picture(), picture()[::-1]], previous=picture()[:, ::-1])


@pytest.mark.parametrize(
    ("how", "says"),
    [("nan", "not finite"), ("inf", "not finite"), ("black", "is black"),
     ("grey", "is constant"), ("burnt", "burnt out")],
)  # fmt: skip
def test_a_spoilt_picture_fails_its_trial_by_name(how: str, says: str) -> None:
    with pytest.raises(TrialFailed, match=says) as caught:
        check_images([picture(), spoilt(how)])
    assert caught.value.stage == "guard" and caught.value.value == 1 and caught.value.way_out


def test_a_picture_that_repeats_the_one_before_fails_its_trial() -> None:
    with pytest.raises(TrialFailed, match="image 0 repeats"):
        check_images([picture()], previous=picture())
    with pytest.raises(TrialFailed, match="image 1 repeats"):
        check_images([picture(), picture()])


def test_pixels_survive_a_file_and_leave_no_part_behind(tmp_path: Path) -> None:
    pixels = to_pixels(picture())
    save_png(pixels, tmp_path / "new" / "a.png")
    save_png(pixels[::-1], tmp_path / "new" / "a.png")
    assert np.array_equal(load_png(tmp_path / "new" / "a.png"), pixels[::-1])
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.png"]


def test_bytes_are_rounded_as_diffusers_rounds_them() -> None:
    from diffusers.image_processor import VaeImageProcessor

    theirs = VaeImageProcessor.numpy_to_pil(picture()[None] * 0.9)[0]
    assert np.array_equal(to_pixels(picture() * 0.9), np.asarray(theirs))


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\nxxxx"])
def test_a_file_that_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(content)
    with pytest.raises(InvalidFile, match="cannot be read as an image") as caught:
        load_png(file)
    assert caught.value.value == str(file) and "PNG" in caught.value.way_out
