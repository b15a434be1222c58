"""A growing pool of encoded scenes, so that the denoiser seldom sees a picture twice."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from planner.zoo.model import pack
from planner.zoo.patches import code, encode, pictures
from planner.zoo.world import scene


@dataclass
class Pool:
    """Packed latents (64, channels) in FP16 with their captions; `first` is the first scene."""

    first: int = 0
    known: dict[str, Tensor] = field(default_factory=code)
    captions: list[str] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)

    def grow(self, count: int) -> None:
        """Draw and encode the next `count` training scenes."""
        at = self.first + len(self.captions)
        found = encode(pictures(at, count), self.known)
        self.latents.extend(pack(found.contiguous()).half())
        self.captions.extend(scene("train", at + i).caption for i in range(count))

    def batch(self, size: int, rng: np.random.Generator) -> tuple[Tensor, list[str]]:
        """Return `size` random latents in FP32 and their captions, some of them thinned."""
        chosen = rng.integers(len(self.captions), size=size)
        captions = [thin(self.captions[i], rng) for i in chosen]
        return torch.stack([self.latents[i] for i in chosen]).float(), captions


def thin(caption: str, rng: np.random.Generator) -> str:
    """Return a caption, dropped one time in ten, and with a third of its words one time in ten."""
    chance = rng.random()
    if chance < 0.1:
        return ""
    if chance < 0.2:
        return " ".join(word for word in caption.split() if rng.random() < 2 / 3)
    return caption
