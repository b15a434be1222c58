"""Make scenes with captions: seeded, endless, and with some combinations held out.

A caption says less than the picture shows: what it leaves out is drawn at random.
A *combination* is (colour, shape, role), where the role is the place, the relation, the number or
the lack of them. About one in seven is held out: no training scene or caption has it, and every
certification caption has at least one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.measure.captions import NUMBERS, PLACES, RELATIONS
from planner.measure.outlines import HUES, SHAPES
from planner.zoo.draw import SIZE, TEXTURES, Thing, draw

COLOURS = tuple(HUES)
KINDS = ("one", "pair", "count", "list", "vague")
ROLES = ("anywhere", *PLACES, *RELATIONS, "listed", "some", *NUMBERS)

_KIND_ODDS = (0.62, 0.16, 0.08, 0.08, 0.06)
_TRAINED_ODDS = (0.3, 0.32, 0.14, 0.2, 0.04)
"""Odds of KINDS; several things are harder to learn, and trained more."""

_TURN = math.pi / 6
"""Largest angle of a thing in radians, either way."""

_SPLIT_KEY = {"train": 11, "tune": 22, "certify": 33}


@dataclass(frozen=True)
class Scene:
    """A caption with one picture's truth: things from back to front, and the drawing seed."""

    caption: str
    kind: str
    things: tuple[Thing, ...]
    combinations: tuple[tuple[str, str, str], ...]
    seed: int

    def image(self) -> NDArray[np.uint8]:
        """Return the picture, (SIZE, SIZE, 3)."""
        return draw(self.things, self.seed)


def held_out(colour: str, shape: str, role: str) -> bool:
    """Return whether a combination is kept from training."""
    c, s, r = COLOURS.index(colour), SHAPES.index(shape), ROLES.index(role)
    return (c + 2 * s + 3 * r) % 7 == 0


def region(x: float, y: float) -> str:
    """Return the place (left, right, top, bottom, center) of a centre in pixels."""
    dx, dy = x - SIZE / 2, y - SIZE / 2
    if max(abs(dx), abs(dy)) < 16:
        return "center"
    if abs(dx) >= abs(dy):
        return "left" if dx < 0 else "right"
    return "top" if dy < 0 else "bottom"


def scene(split: str, seed: int, kind: str | None = None) -> Scene:
    """Return one scene of a split; the same arguments give the same scene."""
    rng = np.random.default_rng([_SPLIT_KEY[split], seed])
    odds = _TRAINED_ODDS if split == "train" else _KIND_ODDS
    chosen = kind or str(rng.choice(KINDS, p=odds))
    if split == "certify" and chosen == "vague":
        chosen = "one"  # "a star" says too little to be held out
    while True:
        made = _MAKERS[chosen](rng)
        if made is None:
            continue
        caption, things, combos = made
        novel = any(held_out(*combo) for combo in combos)
        if split == "certify" and not novel:
            continue
        if split != "certify" and (novel or any(_strays(t) for t in things)):
            continue
        return Scene(caption, chosen, things, combos, int(rng.integers(2**31)))


def captions(split: str, n: int, seed: int = 0, kind: str | None = None) -> list[str]:
    """Return `n` distinct captions of a split; `kind` narrows them to one of KINDS."""
    found: dict[str, None] = {}
    at = seed * 1_000_003
    while len(found) < n:
        found.setdefault(scene(split, at, kind).caption)
        at += 1
    return list(found)


_Made = tuple[str, tuple[Thing, ...], tuple[tuple[str, str, str], ...]]


def _strays(thing: Thing) -> bool:
    """Return whether a thing lies where its colour and shape are held out."""
    return held_out(thing.colour, thing.shape, region(thing.x, thing.y))


def _pick(rng: np.random.Generator, among: Sequence[str]) -> str:
    return among[int(rng.integers(len(among)))]


def _thing(
    rng: np.random.Generator,
    x: float,
    y: float,
    radius: tuple[float, float] = (24, 35),
    avoid: tuple[str, ...] = (),
) -> Thing:
    colour = _pick(rng, [c for c in COLOURS if c not in avoid])
    texture = "plain" if rng.random() < 0.5 else _pick(rng, TEXTURES)
    angle = rng.uniform(-_TURN, _TURN)
    return Thing(_pick(rng, SHAPES), colour, texture, x, y, rng.uniform(*radius), angle)


def _say(rng: np.random.Generator, thing: Thing, texture: bool = True) -> str:
    """Return "a striped red circle"; the texture is said one time in four."""
    words = [thing.colour, thing.shape]
    if texture and thing.texture != "plain" and rng.random() < 0.25:
        words.insert(0, thing.texture)
    return " ".join(["an" if words[0] == "orange" else "a", *words])


def _apart(a: Thing, b: Thing, share: float) -> bool:
    return math.hypot(a.x - b.x, a.y - b.y) >= share * (a.radius + b.radius)


def _spot(rng: np.random.Generator, place: str | None = None) -> tuple[float, float]:
    """Return a centre in pixels, in a named place where one is given."""
    if place is None:
        x, y = rng.uniform(26, SIZE - 26, 2)
    elif place == "center":
        x, y = rng.uniform(56, 72, 2)
    else:
        near, along = rng.uniform(25, 38), rng.uniform(44, 84)
        x, y = (near, along) if place in ("left", "right") else (along, near)
        x = SIZE - x if place == "right" else x
        y = SIZE - y if place == "bottom" else y
    return float(x), float(y)


def _one(rng: np.random.Generator) -> _Made | None:
    """Make one named thing, in a named place half the time, before unnamed ones at times."""
    place = _pick(rng, tuple(PLACES)) if rng.random() < 0.5 else None
    named = _thing(rng, *_spot(rng, place))
    others: list[Thing] = []
    for _ in range(int(rng.choice([0, 1, 2], p=[0.75, 0.17, 0.08]))):
        avoid = (named.colour, *(o.colour for o in others))
        other = _thing(rng, *_spot(rng), avoid=avoid)
        if not all(_apart(other, o, 0.8) for o in (named, *others)):
            return None
        others.append(other)
    caption = _say(rng, named) + (f" {PLACES[place]}" if place else "")
    combo = (named.colour, named.shape, place or "anywhere")
    return caption, (*others, named), (combo,)


def _pair(rng: np.random.Generator) -> _Made | None:
    """Make two named things in a relation."""
    how = _pick(rng, RELATIONS)
    first = _thing(rng, *_spot(rng), radius=(22, 30))
    second = _thing(rng, *_spot(rng), radius=(22, 30), avoid=(first.colour,))
    dx, dy = second.x - first.x, second.y - first.y
    if how in ("in front of", "behind"):
        gap = math.hypot(dx, dy) / (first.radius + second.radius)
        fits = 0.55 <= gap <= 0.78
    else:
        along, across = (dx, dy) if how in ("left of", "right of") else (dy, dx)
        along = -along if how in ("right of", "below") else along
        fits = along >= 34 and abs(across) <= 0.7 * along and _apart(first, second, 0.85)
    if not fits:
        return None
    order = (second, first) if how != "behind" else (first, second)
    if how not in ("in front of", "behind") and rng.random() < 0.5:
        order = order[::-1]
    caption = f"{_say(rng, first)} {how} {_say(rng, second)}"
    return caption, order, ((first.colour, first.shape, how),)


def _count(rng: np.random.Generator) -> _Made | None:
    """Make two to four things of one colour and shape; the number is said half the time."""
    word = _pick(rng, tuple(NUMBERS))
    said = rng.random() < 0.6
    n = NUMBERS[word]
    first = _thing(rng, *_spot(rng), radius=(19, 25) if n < 4 else (17, 20))
    things = [first]
    for _ in range(60):
        if len(things) == n:
            break
        x, y = _spot(rng)
        turn = rng.uniform(-_TURN, _TURN)
        new = Thing(first.shape, first.colour, first.texture, x, y, first.radius, turn)
        if all(_apart(new, t, 1.08) for t in things):
            things.append(new)
    if len(things) < n:
        return None
    plural = "crosses" if first.shape == "cross" else first.shape + "s"
    caption = f"{word} {first.colour} {plural}" if said else f"{first.colour} {plural}"
    return caption, tuple(things), ((first.colour, first.shape, word if said else "some"),)


def _list(rng: np.random.Generator) -> _Made | None:
    """Make two or three named things anywhere, joined by "and"."""
    things: list[Thing] = []
    for _ in range(2 if rng.random() < 0.6 else 3):
        avoid = tuple(t.colour for t in things)
        new = _thing(rng, *_spot(rng), radius=(21, 28), avoid=avoid)
        if not all(_apart(new, t, 0.8) for t in things):
            return None
        things.append(new)
    caption = " and ".join(_say(rng, t, texture=False) for t in things)
    order = [things[i] for i in rng.permutation(len(things))]
    return caption, tuple(order), tuple((t.colour, t.shape, "listed") for t in things)


def _vague(rng: np.random.Generator) -> _Made | None:
    """Make one thing of which only the colour or only the shape is said."""
    thing = _thing(rng, *_spot(rng), radius=(24, 36))
    words = thing.shape if rng.random() < 0.5 else f"{thing.colour} shape"
    caption = ("an " if words.startswith("orange") else "a ") + words
    return caption, (thing,), ((thing.colour, thing.shape, "anywhere"),)


_MAKERS = {"one": _one, "pair": _pair, "count": _count, "list": _list, "vague": _vague}
