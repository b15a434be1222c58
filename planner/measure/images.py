"""Images in and out, and the guards that stand before any metric.

A black frame passes many a metric, and NaN becomes black when it is rounded: so pictures are
looked at as floats, before they are made into bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.errors import InvalidFile, TrialFailed

Pixels = NDArray[np.uint8]
"""Height × width × 3, 0..255."""

BLACK = 0.02
"""An image whose brightest value is below this is black (5 of 255)."""

FLAT = 1 / 255
"""An image whose standard deviation is below one grey level is constant."""

SATURATED = 0.98
"""An image with more than this share of values at 0 or 1 has burnt out."""


def check_images(
    images: Sequence[NDArray[Any]], previous: NDArray[Any] | None = None
) -> None:
    """Raise `TrialFailed` (stage guard) for images that no metric may judge.

    `images` are float arrays, height × width × channels, 0..1; `previous` is the last image of
    another prompt, to find a cache that replays it. Refused: values that are not finite, black,
    constant or burnt-out images, and an image that repeats the one before it.
    """
    for number, image in enumerate(images):
        fault = _fault(image)
        if fault is None and previous is not None and np.array_equal(image, previous):
            fault = "repeats the image before it"
        if fault is not None:
            raise TrialFailed(
                f"image {number} {fault}",
                stage="guard",
                value=number,
                way_out="the plan breaks this pipeline here; leave out its last pass and try again",
            )
        previous = image


def _fault(image: NDArray[Any]) -> str | None:
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        share = 1 - np.isfinite(values).mean()
        return f"has values that are not finite ({share:.1%})"
    if values.max() < BLACK:
        return f"is black (brightest value {values.max():.3f})"
    if values.std() < FLAT:
        return f"is constant (standard deviation {values.std():.4f})"
    ends = float(((values <= 0) | (values >= 1)).mean())
    return f"has burnt out ({ends:.1%} of its values at 0 or 1)" if ends > SATURATED else None


def to_pixels(image: NDArray[Any]) -> Pixels:
    """Turn a float image (0..1) into bytes, rounding as diffusers does."""
    pixels: Pixels = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    return pixels


def save_png(pixels: Pixels, path: Path) -> None:
    """Write pixels as PNG, making the folder; a file that is there is replaced whole."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        Image.fromarray(pixels).save(part, format="PNG")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load_png(path: Path) -> Pixels:
    """Read an image file as pixels. Raises `InvalidFile` where it is none."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (OSError, SyntaxError, ValueError) as error:
        what = f"{path} cannot be read as an image ({error})"
        raise InvalidFile(what, value=str(path), way_out="give a PNG file") from error
