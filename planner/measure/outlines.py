"""See coloured things in a picture: which colour, which outline, where. Numpy and scipy only.

Things are the saturated parts of a picture, their hue is their colour, and their shape is the
outline that fits best, where parts hidden by another thing do not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

HUES = {
    "red": 0.0,
    "orange": 31.0,
    "yellow": 57.0,
    "green": 125.0,
    "cyan": 182.0,
    "blue": 225.0,
    "purple": 290.0,
}
"""Colours and their hue in degrees."""

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")

Field = NDArray[np.float32]
Mask = NDArray[np.bool_]

_CELLS = 32
_REACH = 1.6
_LEAST_AREA = 90


@dataclass(frozen=True)
class Found:
    """One outline seen in a picture: centre and radius in pixels, `fit` up to 1.

    `whole` says that it is a connected part, not several taken together.
    """

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    angle: float
    fit: float
    whole: bool = True


def distance(shape: str, x: Field, y: Field, r: float) -> Field:
    """Return the signed distance in pixels to an upright shape of outer radius `r` at 0, 0."""
    out: NDArray[np.floating[Any]]
    if shape == "circle":
        out = np.hypot(x, y) - r
    elif shape == "ring":
        out = np.abs(np.hypot(x, y) - 0.75 * r) - 0.25 * r
    elif shape == "square":
        out = np.maximum(np.abs(x), np.abs(y)) - 0.8 * r
    elif shape == "triangle":
        out = np.maximum(y - 0.5 * r, 0.8660254 * np.abs(x) - 0.5 * y - 0.5 * r)
    elif shape == "cross":
        ax, ay = np.abs(x), np.abs(y)
        wide = np.maximum(ax - r, ay - 0.32 * r)
        out = np.minimum(wide, np.maximum(ax - 0.32 * r, ay - r))
    elif shape == "star":
        out = _star(x, y, r)
    else:
        raise ValueError(f"unknown shape {shape!r}, known are {', '.join(SHAPES)}")
    return np.asarray(out, np.float32)


def _star(x: Field, y: Field, r: float) -> Field:
    """Return the distance to a five-pointed star whose inner corners lie at 0.45 of `r`."""
    sector = 2 * math.pi / 5
    turn = np.abs((np.arctan2(x, -y) + sector / 2) % sector - sector / 2)
    rho = np.hypot(x, y)
    inner = 0.45 * r
    nx, ny = inner * math.sin(sector / 2), r - inner * math.cos(sector / 2)
    out = (rho * np.cos(turn) - r) * nx + rho * np.sin(turn) * ny
    return np.asarray(out / math.hypot(nx, ny), np.float32)


def rotate(angle: float, x: Field, y: Field) -> tuple[Field, Field]:
    """Return coordinates in axes that are turned by `angle` radians."""
    c, s = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return c * x + s * y, c * y - s * x


def colours(image: ArrayLike) -> NDArray[np.int8]:
    """Return for each pixel the index of its colour in HUES, or -1 where it is ground."""
    rgb = np.asarray(image, np.float32)[..., :3] / 255
    high, low = rgb.max(-1), rgb.min(-1)
    chroma = high - low
    r, g, b = np.moveaxis(rgb, -1, 0)
    safe = np.maximum(chroma, 1e-6)
    sixth = np.where(high == g, (b - r) / safe + 2, (r - g) / safe + 4)
    hue = np.where(high == r, (g - b) / safe % 6, sixth) * 60
    known = np.array(list(HUES.values()), np.float32)
    gap = np.abs((hue[..., None] - known + 180) % 360 - 180)
    lively = (chroma > 0.13) & (chroma > 0.33 * high)
    return np.where(lively, gap.argmin(-1), -1).astype(np.int8)


@cache
def _bank() -> tuple[Field, tuple[tuple[str, float, float, float, float], ...]]:
    """Return outlines on a small grid, one a row, and (shape, radius, x, y, angle) of each."""
    at = np.linspace(-_REACH, _REACH, _CELLS, dtype=np.float32)
    y, x = np.meshgrid(at, at, indexing="ij")
    turns = {"circle": 1, "ring": 1, "square": 6, "triangle": 8, "star": 5, "cross": 6}
    period = {"circle": 1.0, "ring": 1.0, "square": 90, "triangle": 120, "star": 72, "cross": 90}
    rows, names = [], []
    for shape in SHAPES:
        for turn in range(turns[shape]):
            angle = math.radians(period[shape]) * turn / turns[shape]
            for radius in np.linspace(0.85, 1.45, 7):
                for dx, dy in np.ndindex(5, 5):
                    ox, oy = 0.15 * (dx - 2), 0.15 * (dy - 2)
                    u, v = rotate(angle, x - ox, y - oy)
                    rows.append((distance(shape, u, v, radius) <= 0).ravel())
                    names.append((shape, float(radius), ox, oy, angle))
    return np.array(rows, np.float32), tuple(names)


def _fits(mask: Mask, hidden: Mask, colour: str, whole: bool) -> list[Found]:
    """Return the best fit of every shape to a mask, best first; `hidden` does not count."""
    ys, xs = np.nonzero(mask)
    cx, cy = (xs.min() + xs.max()) / 2, (ys.min() + ys.max()) / 2
    half = max(np.ptp(xs), np.ptp(ys)) / 2 + 0.5
    at = np.linspace(-_REACH, _REACH, _CELLS) * half
    grid = np.meshgrid(cy + at, cx + at, indexing="ij")
    seen = ndimage.map_coordinates(mask.astype(np.float32), grid, order=1).ravel()
    counts = ndimage.map_coordinates((~hidden).astype(np.float32), grid, order=0).ravel()
    bank, names = _bank()
    weighted = seen * counts
    both = bank @ weighted
    fit = both / (bank @ counts + weighted.sum() - both + 1e-6)
    # A fit that leans on hidden parts explains less, so it loses against one that shows more.
    fit = fit - 0.05 * (bank @ (1 - counts)) / bank.sum(1)
    best: dict[str, int] = {}
    for i in np.argsort(-fit):
        best.setdefault(names[i][0], int(i))
    out = []
    for shape, i in best.items():
        _shape, radius, ox, oy, angle = names[i]
        x, y = float(cx + ox * half), float(cy + oy * half)
        out.append(Found(colour, shape, x, y, radius * half, angle, float(fit[i]), whole))
    return out


def _parts(kinds: NDArray[np.int8], index: int) -> Iterator[tuple[Mask, bool]]:
    """Yield each connected part of a colour, then all of them as one if there are several."""
    filled = ndimage.binary_closing(np.pad(kinds == index, 3), iterations=2)[3:-3, 3:-3]
    mask = ndimage.binary_opening(filled & ((kinds == index) | (kinds < 0)))
    labels, count = ndimage.label(mask)
    large = [labels == i for i in range(1, count + 1) if (labels == i).sum() >= _LEAST_AREA]
    for part in large:
        yield part, True
    if len(large) > 1:
        yield np.logical_or.reduce(large), False


def find(image: ArrayLike) -> list[list[Found]]:
    """Return the things in a picture; each is a list of shapes that fit it, best first."""
    kinds = colours(image)
    return [fits for index in range(len(HUES)) for fits in _candidates(kinds, index)]


def _candidates(kinds: NDArray[np.int8], index: int) -> list[list[Found]]:
    other = (kinds >= 0) & (kinds != index)
    hidden = ndimage.binary_opening(other, iterations=2)
    name = list(HUES)[index]
    return [_fits(mask, hidden, name, whole) for mask, whole in _parts(kinds, index)]


def coverage(image: ArrayLike, first: Found, second: Found) -> tuple[int, int]:
    """Return how many pixels of the two outlines' overlap show the first and the second."""
    kinds = colours(image)
    y, x = np.mgrid[0 : kinds.shape[0], 0 : kinds.shape[1]].astype(np.float32)
    shared = np.ones(kinds.shape, bool)
    for thing in (first, second):
        u, v = rotate(thing.angle, x - thing.x, y - thing.y)
        shared &= distance(thing.shape, u, v, thing.radius) < 1.5
    names = list(HUES)
    mine, theirs = (kinds == names.index(first.colour)), (kinds == names.index(second.colour))
    return int((mine & shared).sum()), int((theirs & shared).sum())
