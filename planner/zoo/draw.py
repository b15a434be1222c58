"""Draw one scene of the generated world: numpy only, a few milliseconds a picture.

Every form is a signed distance in pixels, so its edge is smooth without oversampling.
Saturation tells things from ground: surfaces keep the hue of their colour, grounds stay pale.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.measure.outlines import HUES, Field, distance, rotate

SIZE = 128
"""Width and height of a picture in pixels."""

TEXTURES = ("plain", "striped", "dotted", "checked", "grainy", "shaded")
"""Surfaces of a thing; the first one is what an unpatterned thing has."""

_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + np.float32(0.5)


@dataclass(frozen=True)
class Thing:
    """One object: centre and radius in pixels, angle in radians."""

    shape: str
    colour: str
    texture: str
    x: float
    y: float
    radius: float
    angle: float


def _unit(field: NDArray[np.floating[Any]]) -> Field:
    """Return a field cut to 0 and 1."""
    return np.asarray(np.clip(field, 0, 1), np.float32)


def _wave(phase: Field, sharp: float = 2.5) -> Field:
    """Return a soft square wave between 0 and 1."""
    return np.asarray(np.clip(np.sin(phase) * sharp * 0.5 + 0.5, 0, 1), np.float32)


def _noise(rng: np.random.Generator, cells: int) -> Field:
    """Return smooth noise between 0 and 1 with `cells` cells across the picture."""
    grid = rng.random((cells + 1, cells + 1), dtype=np.float32)
    at = np.linspace(0, cells, SIZE, endpoint=False)
    low = at.astype(int)
    part = (at - low).astype(np.float32)
    rows = grid[low] * (1 - part)[:, None] + grid[low + 1] * part[:, None]
    return np.asarray(rows[:, low] * (1 - part) + rows[:, low + 1] * part, np.float32)


def _pattern(kind: str, x: Field, y: Field, rng: np.random.Generator) -> Field:
    """Return a surface pattern between 0 and 1 in the thing's own axes."""
    u, v = rotate(rng.uniform(0, math.pi), x, y)
    k = np.float32(2 * math.pi / rng.uniform(8.0, 15.0))
    if kind == "striped":
        return _wave(k * u)
    if kind == "dotted":
        return _wave(np.arcsin(np.clip(np.cos(k * u * 0.8) + np.cos(k * v * 0.8) - 1, -1, 1)), 4)
    if kind == "checked":
        return _unit(np.sin(k * u * 0.7) * np.sin(k * v * 0.7) * 3 + 0.5)
    if kind == "grainy":
        return _noise(rng, int(rng.integers(24, 40)))
    if kind == "shaded":
        return np.asarray(np.clip(u / 50 + 0.5, 0, 1), np.float32)
    return np.zeros_like(x)


def _surface(thing: Thing, x: Field, y: Field, rng: np.random.Generator) -> Field:
    """Return the colour of a thing's surface, (3, SIZE, SIZE): one hue, other lightness."""
    hue = HUES[thing.colour] / 360 + rng.uniform(-0.010, 0.010)
    main = np.array(colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.84, 1.0), rng.uniform(0.78, 0.98)))
    other = main * rng.uniform(0.45, 0.62)
    if rng.random() < 0.5:
        share = rng.uniform(0.40, 0.52)
        other = main * (1 - share) + share
    blend = _pattern(thing.texture, x, y, rng)
    base = main.astype(np.float32)[:, None, None]
    return base + blend * (other.astype(np.float32)[:, None, None] - base)


def _pale(rng: np.random.Generator) -> Field:
    """Return a pale or grey colour, (3, 1, 1)."""
    value = rng.uniform(0.25, 0.95)
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.0, 0.20), value)
    return np.array(rgb, np.float32)[:, None, None]


def _ground(rng: np.random.Generator) -> Field:
    """Return a ground: gradient, waves, blotches or a horizon, with fine lines on some of them."""
    first, other = _pale(rng), _pale(rng)
    second = first + rng.uniform(0.12, 0.5) * (other - first)
    u, v = rotate(rng.uniform(0, 2 * math.pi), _X - SIZE / 2, _Y - SIZE / 2)
    kind = rng.integers(0, 5)
    if kind == 0:
        mix = _unit(u / 150 + 0.5)
    elif kind == 1:
        mix = _wave(u * np.float32(2 * math.pi / rng.uniform(14, 32)), 3)
    elif kind == 2:
        mix = _noise(rng, int(rng.integers(3, 16)))
    elif kind == 3:
        mix = _unit((_Y - rng.uniform(45, 95)) + (_X - 64) * rng.uniform(-0.15, 0.15) + 0.5)
    else:
        k = 2 * math.pi / rng.uniform(16, 30)
        mix = _unit(np.sin(k * u) * np.sin(k * v) * 4 + 0.5)
    out = first + mix * (second - first)
    out = out * (1 + (_noise(rng, 32) - 0.5) * rng.uniform(0, 0.12))
    pale = np.asarray(out, np.float32)
    return _lines(pale, rng) if rng.random() < 0.4 else pale


def _lines(ground: Field, rng: np.random.Generator) -> Field:
    """Return the ground crossed by one to four fine straight lines."""
    ink = _pale(rng)
    out: NDArray[np.floating[Any]] = ground
    for _ in range(rng.integers(1, 5)):
        u, _v = rotate(rng.uniform(0, math.pi), _X - SIZE / 2, _Y - SIZE / 2)
        near = np.abs(u - rng.uniform(-55, 55)) - rng.uniform(0.7, 1.5)
        out = out + np.clip(0.5 - near, 0, 1) * 0.85 * (ink - out)
    return np.asarray(out, np.float32)


def draw(things: tuple[Thing, ...], seed: int) -> NDArray[np.uint8]:
    """Return the picture of things from back to front, (SIZE, SIZE, 3); `seed` sets the rest."""
    rng = np.random.default_rng(seed)
    out: NDArray[np.floating[Any]] = _ground(rng)
    light = rng.uniform(0, 2 * math.pi)
    throw, depth = rng.uniform(3, 8), rng.uniform(0.25, 0.55)
    sx, sy = throw * math.cos(light), throw * math.sin(light)
    outline = rng.random() < 0.35
    for thing in things:
        x, y = rotate(thing.angle, _X - thing.x, _Y - thing.y)
        gap = distance(thing.shape, x, y, thing.radius)
        cx, cy = rotate(thing.angle, _X - thing.x - sx, _Y - thing.y - sy)
        soft = np.clip(0.5 - distance(thing.shape, cx, cy, thing.radius) / 7, 0, 1)
        out = out * (1 - depth * soft * soft)
        skin = _surface(thing, x, y, rng)
        if outline:
            skin = skin * (1 - 0.55 * np.clip(gap + 2.2, 0, 1))
        out = out + np.clip(0.5 - gap, 0, 1) * (skin - out)
    fall = (_X - 64) * -math.cos(light) + (_Y - 64) * -math.sin(light)
    out = out * (1 + fall * rng.uniform(0.0, 0.0030))
    return np.asarray(np.clip(out, 0, 1).transpose(1, 2, 0) * 255 + 0.5, np.uint8)
