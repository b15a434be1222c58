"""What a training step learns from: freshly drawn scenes, so that no picture is seen twice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from planner.measure.outlines import HUES, SHAPES, distance, rotate
from planner.zoo.draw import SIZE, Thing
from planner.zoo.model import pack
from planner.zoo.patches import as_tensor, encode
from planner.zoo.world import scene

CELL = 4
"""Pixels a side of the cells in which a layout says what is shown."""

_TOKEN = 16 // CELL
_KINDS = (1 + len(SHAPES), 1 + len(HUES))


@dataclass(frozen=True)
class Lesson:
    """A batch: packed latents (n, 64, channels), captions, and layouts (n, 64, 16, 2).

    A layout holds the shape and the colour shown in each cell of a token, 0 for ground.
    """

    clean: Tensor
    captions: list[str]
    layout: Tensor


def lesson(first: int, count: int, known: dict[str, Tensor], rng: np.random.Generator) -> Lesson:
    """Return the training scenes `first` to `first + count - 1`, some captions thinned."""
    scenes = [scene("train", first + i) for i in range(count)]
    latents = encode(as_tensor([one.image() for one in scenes]), known)
    layouts = torch.stack([layout(one.things) for one in scenes])
    return Lesson(pack(latents.contiguous()), [thin(s.caption, rng) for s in scenes], layouts)


def thin(caption: str, rng: np.random.Generator) -> str:
    """Return a caption, dropped one time in ten, and with a third of its words one time in ten."""
    chance = rng.random()
    if chance < 0.1:
        return ""
    if chance < 0.2:
        return " ".join(word for word in caption.split() if rng.random() < 2 / 3)
    return caption


def layout(things: tuple[Thing, ...]) -> Tensor:
    """Return what each cell of each token shows, (64, 16, 2): shape and colour, 0 for ground."""
    at = np.arange(CELL / 2, SIZE, CELL, dtype=np.float32)
    y, x = np.meshgrid(at, at, indexing="ij")
    seen = np.zeros((*x.shape, 2), np.int64)
    for thing in things:
        u, v = rotate(thing.angle, x - thing.x, y - thing.y)
        name = (1 + SHAPES.index(thing.shape), 1 + list(HUES).index(thing.colour))
        seen[distance(thing.shape, u, v, thing.radius) <= 0] = name
    side = len(at) // _TOKEN
    cells = torch.from_numpy(seen).reshape(side, _TOKEN, side, _TOKEN, 2)
    return cells.permute(0, 2, 1, 3, 4).reshape(side * side, _TOKEN * _TOKEN, 2)


class LayoutReader(nn.Module):
    """Reads a layout from the image tokens inside the denoiser; needed only while it trains.

    The error of a velocity is mostly noise that nothing can predict, and outlines are a small part
    of the rest. Asking the middle blocks which shape and colour each cell will show teaches them
    outlines directly, as aligning them with a pretrained encoder does (REPA, arXiv 2410.06940);
    here the drawn truth takes the encoder's place.
    """

    def __init__(self, width: int) -> None:
        """Build the reader for tokens of `width` channels."""
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.name = nn.Linear(width, _TOKEN * _TOKEN * sum(_KINDS))

    def loss(self, tokens: Tensor, layouts: Tensor) -> Tensor:
        """Return the cross entropy of shapes and colours, for tokens (n, 64, width)."""
        scores = self.name(self.norm(tokens)).unflatten(-1, (-1, sum(_KINDS)))
        shapes, colours = scores.split(_KINDS, -1)
        wrong = nn.functional.cross_entropy(shapes.flatten(0, 2), layouts[..., 0].flatten())
        return wrong + nn.functional.cross_entropy(colours.flatten(0, 2), layouts[..., 1].flatten())
