"""Baseline and tuned images side by side, with a map of where they differ, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.case.prompts import Prompt
from planner.measure.images import Pixels, load_png

WORST, MEDIAN = 6, 3
"""How many pairs are shown from the worst end and from around the median."""

_LARGEST = 320
"""Pixels of the longer side on the page; larger images are scaled down and sent as JPEG."""

_HEAT = ((0.0, (20, 20, 24)), (0.35, (122, 30, 60)), (0.7, (230, 92, 30)), (1.0, (255, 232, 120)))
"""Colours of the map, from no difference to the most that is shown."""

Map = NDArray[np.floating[Any]]
Maps = Callable[[Pixels, Pixels], Map]


Place = Literal["worst", "median"]


class Pair(NamedTuple):
    """One prompt's two images and where they differ, ready for an `img` element."""

    prompt: Prompt
    lpips: float
    place: Place
    reference: str
    candidate: str
    difference: str
    width: int
    height: int


class Pairs(NamedTuple):
    """The pairs that are shown; the map's full scale; prompts whose images are gone."""

    pairs: tuple[Pair, ...]
    scale: float
    missing: tuple[str, ...]


def chosen(distances: Mapping[str, float]) -> list[tuple[str, Place]]:
    """Return the ids of the worst prompts first, then of those around the median."""
    order = sorted(distances, key=lambda key: (-distances[key], key))
    worst, rest = order[:WORST], order[WORST:]
    middle = max(0, min(len(order) // 2 - MEDIAN // 2 - len(worst), len(rest) - MEDIAN))
    median = rest[middle : middle + MEDIAN]
    return [(key, "worst") for key in worst] + [(key, "median") for key in median]


def pairs(
    images: Path, folder: str, prompts: Mapping[str, Prompt], distances: Mapping[str, float],
    maps: Maps,
) -> Pairs:  # fmt: skip
    """Load the chosen pairs and map their differences; all maps share one scale.

    `images` is the study's image folder, `folder` the plan's in it; `maps` takes two uint8 HWC
    arrays and returns a distance for every pixel.
    """
    kept: list[tuple[str, Place, Pixels, Pixels, Map]] = []
    missing = []
    for key, place in chosen(distances):
        one, two = images / "baseline" / f"{key}.png", images / folder / f"{key}.png"
        if not (one.exists() and two.exists()):
            missing.append(key)
            continue
        a, b = load_png(one), load_png(two)
        kept.append((key, place, a, b, maps(a, b)))
    scale = max((float(np.quantile(found, 0.995)) for *_, found in kept), default=0.0) or 1.0
    made = tuple(
        _pair(prompts[key], distances[key], place, (a, b), found / scale)
        for key, place, a, b, found in kept
    )
    return Pairs(pairs=made, scale=scale, missing=tuple(missing))


def data_uri(pixels: Pixels) -> str:
    """Return an image as a data URI: PNG where it is small, JPEG where it was scaled down."""
    from PIL import Image

    image = Image.fromarray(pixels)
    small = image.resize(_fit(pixels), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    if small.size == image.size:
        image.save(out, format="PNG", optimize=True)
        kind = "png"
    else:
        small.save(out, format="JPEG", quality=86)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def heat(difference: Map, under: Pixels) -> Pixels:
    """Colour a map (0 none, 1 and above most) over a dimmed grey copy of the image."""
    level = np.clip(difference, 0.0, 1.0)
    stops = [stop for stop, _ in _HEAT]
    colour = np.stack(
        [np.interp(level, stops, [rgb[i] for _, rgb in _HEAT]) for i in range(3)], axis=-1
    )
    grey = under.mean(axis=-1, keepdims=True) * 0.42
    weight = np.clip(level * 1.6, 0.0, 1.0)[..., None]
    mixed: Pixels = np.round(grey * (1 - weight) + colour * weight).astype(np.uint8)
    return mixed


def legend() -> str:
    """Return the map's colours from left to right as a CSS gradient."""
    stops = ", ".join(f"rgb{rgb} {stop:.0%}" for stop, rgb in _HEAT)
    return f"linear-gradient(to right, {stops})"


def _pair(
    prompt: Prompt, lpips: float, place: Place, images: tuple[Pixels, Pixels], difference: Map
) -> Pair:
    a, b = images
    width, height = _fit(a)
    return Pair(prompt=prompt, lpips=lpips, place=place, reference=data_uri(a),
                candidate=data_uri(b), difference=data_uri(heat(difference, b)),
                width=width, height=height)  # fmt: skip


def _fit(pixels: Pixels) -> tuple[int, int]:
    """Return width and height on the page."""
    height, width = pixels.shape[:2]
    shrink = min(1.0, _LARGEST / max(width, height))
    return round(width * shrink), round(height * shrink)
