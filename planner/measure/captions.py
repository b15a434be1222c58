"""Check whether a picture of the `shapes` world shows what its caption asks for.

It needs no reference picture, no network and no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike

from planner.measure.outlines import HUES, SHAPES, Found, coverage, find

PLACES = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "center": "in the center",
}
RELATIONS = ("left of", "right of", "above", "below", "in front of", "behind")
NUMBERS = {"two": 2, "three": 3, "four": 4}

_LEAST_FIT = 0.62


@dataclass(frozen=True)
class Mention:
    """One asked object: None means not said; `most` is None for an open number."""

    colour: str | None
    shape: str | None
    place: str | None = None
    least: int = 1
    most: int | None = None

    def __str__(self) -> str:
        """Return the mention in words."""
        name = f"{self.colour or 'any'} {self.shape or 'shape'}"
        return f"{name} {PLACES[self.place]}" if self.place else name


@dataclass(frozen=True)
class ObjectCheck:
    """Whether one asked object is there, and if not, what is missing."""

    asked: Mention
    passed: bool
    reason: str = ""


@dataclass(frozen=True)
class CaptionCheck:
    """Whether the whole caption is met: every object, and the relation where one is said."""

    passed: bool
    objects: tuple[ObjectCheck, ...]
    relation: str | None = None
    relation_passed: bool = True


def parse(caption: str) -> tuple[tuple[Mention, ...], str | None]:
    """Return the asked objects of a caption and the relation of the first two, if any."""
    for relation in RELATIONS:
        left, found, right = caption.partition(f" {relation} ")
        if found:
            return (_mention(left), _mention(right)), relation
    return tuple(_mention(part) for part in caption.split(" and ")), None


def _mention(phrase: str) -> Mention:
    place = next((name for name, text in PLACES.items() if phrase.endswith(f" {text}")), None)
    words = phrase.removesuffix(PLACES[place]).split() if place else phrase.split()
    colour = next((word for word in words if word in HUES), None)
    last = words[-1] if words else ""
    single = last if last in (*SHAPES, "shape") else last.removesuffix("s").removesuffix("e")
    single = {"circl": "circle", "squar": "square", "triangl": "triangle", "shap": "shape"}.get(
        single, single
    )
    if single not in (*SHAPES, "shape"):
        raise ValueError(f"no shape in {phrase!r}, known are {', '.join(SHAPES)}")
    shape = None if single == "shape" else single
    number = next((NUMBERS[word] for word in words if word in NUMBERS), None)
    if number:
        return Mention(colour, shape, place, number, number)
    return Mention(colour, shape, place, least=1 if single == last else 2)


def _there(place: str | None, thing: Found, size: tuple[int, int]) -> bool:
    """Return whether a thing lies in a named place, generously."""
    if place is None:
        return True
    x, y = thing.x / size[1] - 0.5, thing.y / size[0] - 0.5
    if place == "center":
        return max(abs(x), abs(y)) < 0.17
    depth = {"left": -x, "right": x, "top": -y, "bottom": y}[place]
    aside = abs(y) if place in ("left", "right") else abs(x)
    return depth > 0.10 and aside < 0.28


def _matches(mention: Mention, seen: list[list[Found]]) -> list[Found]:
    """Return the things that have the asked colour and shape."""
    out = []
    for fits in seen:
        best = fits[0]
        if mention.colour in (None, best.colour) and mention.shape in (None, best.shape):
            out.append(best)
    return [thing for thing in out if thing.fit >= _LEAST_FIT]


def _judge(mention: Mention, things: list[Found], size: tuple[int, int]) -> ObjectCheck:
    """Return whether the asked object is among things of its colour and shape."""
    if not things:
        return ObjectCheck(mention, False, f"no {mention.colour or ''} {mention.shape or 'shape'}")
    if mention.least == 1:
        placed = any(_there(mention.place, thing, size) for thing in things)
        return ObjectCheck(mention, placed, "" if placed else "not in its place")
    number = sum(thing.whole for thing in things)
    right = number >= mention.least and (mention.most is None or number <= mention.most)
    return ObjectCheck(mention, right, "" if right else f"{number} of them")


def _related(how: str, first: Found, second: Found, image: ArrayLike) -> bool:
    """Return whether two things stand in a relation; 5 pixels of 128 are the least distance."""
    least = 0.04 * np.asarray(image).shape[0]
    if how in ("in front of", "behind"):
        mine, theirs = coverage(image, first, second)
        shown = mine - theirs if how == "in front of" else theirs - mine
        return mine + theirs >= 8 and shown > 0
    dx, dy = second.x - first.x, second.y - first.y
    ahead = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[how]
    return bool(ahead > least)


def check(image: ArrayLike, caption: str) -> CaptionCheck:
    """Return whether an RGB picture (height, width, 3), 0 to 255, shows what `caption` asks for."""
    mentions, relation = parse(caption)
    pixels = np.asarray(image)
    seen = find(pixels)
    things = [_matches(mention, seen) for mention in mentions]
    size = (pixels.shape[0], pixels.shape[1])
    objects = tuple(_judge(m, t, size) for m, t in zip(mentions, things, strict=True))
    related = relation is None or any(
        _related(relation, first, second, pixels) for first, second in product(*things[:2])
    )
    return CaptionCheck(all(o.passed for o in objects) and related, objects, relation, related)
