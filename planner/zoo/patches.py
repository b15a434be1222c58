"""The latent code of `shapes`: principal components of 8x8 patches, fixed before any training.

A learned code took longer than the CPU time there was. A linear one costs nothing, keeps what the
eye sees in 12 numbers a patch, and lets decoder, encoder and denoiser train side by side.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from planner.zoo.world import scene

_Item = TypeVar("_Item")

LATENT_CHANNELS = 12
PATCH = 8
FILE = Path(__file__).parent / "patch_code.safetensors"
_PICTURES = 600
_FIRST = 5 * 10**8


def pictures(first: int, count: int, split: str = "train") -> Tensor:
    """Return `count` pictures from scene seed `first` on, (count, 3, 128, 128) in [-1, 1]."""
    return as_tensor([scene(split, first + i).image() for i in range(count)])


def as_tensor(images: list[NDArray[np.uint8]]) -> Tensor:
    """Return RGB pictures (height, width, 3) as one tensor (n, 3, height, width) in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def patches(images: Tensor) -> Tensor:
    """Return the patches of images (n, 3, h, w) as rows, (n, h/8, w/8, 192)."""
    n, c, h, w = images.shape
    cut = images.reshape(n, c, h // PATCH, PATCH, w // PATCH, PATCH)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(n, h // PATCH, w // PATCH, c * PATCH * PATCH)


def fit() -> dict[str, Tensor]:
    """Return the code: `basis` (12, 192), whose output has unit overall variance, and `mean`.

    Each component is divided by the root of its deviation, which is half-way to whitening: details
    stay smaller than colours, but not so small that noise hides them until the last steps.
    """
    rows = patches(pictures(_FIRST, _PICTURES)).reshape(-1, 3 * PATCH * PATCH)
    mean = rows.mean(0)
    power, axes = torch.linalg.eigh(torch.cov((rows - mean).T).double())
    deviation = power.flip(0)[:LATENT_CHANNELS].sqrt()
    axes = axes.flip(1)[:, :LATENT_CHANNELS]
    axes = axes * torch.sign(axes[axes.abs().argmax(0), torch.arange(LATENT_CHANNELS)])
    scale = 1 / deviation.sqrt() / deviation.mean().sqrt()
    return {"basis": (axes * scale).T.float().contiguous(), "mean": mean}


def code() -> dict[str, Tensor]:
    """Return the shipped code, fitted and written where it is missing."""
    if not FILE.exists():
        save_file(fit(), FILE)
    known: dict[str, Tensor] = load_file(FILE)
    return known


def encode(images: Tensor, known: dict[str, Tensor]) -> Tensor:
    """Return the latents (n, 12, h/8, w/8) of images in [-1, 1], scaled for the denoiser."""
    return ((patches(images) - known["mean"]) @ known["basis"].T).permute(0, 3, 1, 2)


def ahead(
    items: Dataset[_Item], first: int, stride: int, drawers: int, pinned: bool = False
) -> Iterator[_Item]:
    """Yield items from a place on without end, in order, made ahead by so many processes if any.

    `pinned` puts them into pinned memory, for a GPU.
    """
    places = itertools.count(first, stride)
    how: dict[str, Any] = {"num_workers": drawers, "pin_memory": pinned}
    if drawers:
        how |= {"prefetch_factor": 4, "multiprocessing_context": "forkserver"}
    return iter(DataLoader(items, None, sampler=places, **how))
