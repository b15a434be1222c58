"""What a training step learns from: freshly drawn scenes, so that no picture is seen twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from planner.measure.outlines import HUES, SHAPES, distance, rotate
from planner.zoo.draw import SIZE, Thing
from planner.zoo.model import pack
from planner.zoo.patches import as_tensor, code, encode
from planner.zoo.world import scene

CELL = 4
"""Pixels a side of the cells in which a layout says what is shown."""

_TOKEN = 16 // CELL
_KINDS = (1 + len(SHAPES), 1 + len(HUES))


@dataclass(frozen=True)
class Lesson:
    """A batch: packed latents (n, 64, channels), CLIP and T5 token ids (n, length), and layouts.

    A layout (n, 64, 16, 2) holds the shape and the colour shown in each cell of a token, 0 for
    ground.
    """

    clean: Tensor
    clip: Tensor
    t5: Tensor
    layout: Tensor

    def on(self, device: torch.device, times: int = 1) -> Lesson:
        """Return the lesson on a device, its scenes repeated; each then gets its own noise."""
        moved = [part.to(device, non_blocking=True) for part in self.parts]
        return Lesson(*(part.repeat(times, *[1] * (part.ndim - 1)) for part in moved))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors, in the order of the fields."""
        return self.clean, self.clip, self.t5, self.layout

    def pin_memory(self) -> Lesson:
        """Return the lesson in pinned memory, from where a GPU takes it while it computes."""
        return Lesson(*(part.pin_memory() for part in self.parts))


class Lessons(Dataset[Lesson]):
    """All lessons of a seed, `size` scenes each; a place gives the same lesson in every process."""

    def __init__(self, seed: int, size: int, tokens: Callable[..., tuple[Tensor, Tensor]]) -> None:
        """Take how captions become tokens (`Words`)."""
        self.seed, self.size, self.tokens, self.known = seed, size, tokens, code()

    def __getitem__(self, place: int) -> Lesson:
        """Return the lesson at a place, some of its captions thinned."""
        rng = np.random.default_rng([self.seed, place])
        first = self.seed * 10**7 + place * self.size
        scenes = [scene("train", first + i) for i in range(self.size)]
        # One by one, since pictures of a whole batch do not fit the cache: 1.3 ms against 0.2.
        latents = [encode(as_tensor([one.image()]), self.known) for one in scenes]
        clip, t5 = self.tokens([thin(one.caption, rng) for one in scenes])
        layouts = torch.stack([layout(one.things) for one in scenes])
        return Lesson(pack(torch.cat(latents)), clip, t5, layouts.byte())


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
        names = layouts.long().flatten(0, 2).unbind(-1)
        shapes, colours = (part.flatten(0, 2) for part in scores.split(_KINDS, -1))
        wrong = nn.functional.cross_entropy(shapes, names[0])
        return wrong + nn.functional.cross_entropy(colours, names[1])
