"""Train the denoiser: `python -m planner.zoo.train --minutes 75`.

It goes on from its checkpoint where there is one, and otherwise from `--start`, a pipeline folder
such as the committed weights (give a new `--seed` then, for new scenes).
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from planner.zoo.autoencoder import pace
from planner.zoo.model import Denoiser, Size, flow_loss
from planner.zoo.pool import Pool

PARTS = {"clip": "text_encoder", "t5": "text_encoder_2", "transformer": "transformer"}


@dataclass(frozen=True)
class Recipe:
    """How to train; the end is a number of steps or, if that is 0, of minutes."""

    steps: int = 0
    minutes: float = 75.0
    batch: int = 16
    rate: float = 8e-4
    ema: float = 0.998
    first_pool: int = 1000
    fresh: int = 2
    shallow: float = 0.4
    seed: int = 0
    save_minutes: float = 5.0


class Trainer:
    """Weights, their moving average, the optimizer and the pool, all of it resumable."""

    def __init__(self, recipe: Recipe, folder: Path, size: Size) -> None:
        """Build everything, or read the checkpoint in `folder`."""
        torch.manual_seed(recipe.seed)
        self.recipe, self.folder = recipe, folder
        self.model = Denoiser(size)
        self.average = copy.deepcopy(self.model.state_dict())
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=recipe.rate,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            fused=True,
        )
        self.pool = Pool(first=recipe.seed * 10**7)
        self.step, self.seconds, self.loss = 0, 0.0, float("nan")
        if self.checkpoint.exists():
            self._restore(torch.load(self.checkpoint, weights_only=True))

    @property
    def checkpoint(self) -> Path:
        """Where the whole state lies."""
        return self.folder / "state.pt"

    def save(self) -> None:
        """Write the whole state; a crash leaves the old one whole."""
        self.model.use_depth(1)
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "latents": torch.stack(self.pool.latents),
            "captions": self.pool.captions,
            "progress": [self.step, self.seconds, self.loss],
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.checkpoint)

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.pool.latents = list(state["latents"])
        self.pool.captions = state["captions"]
        self.step, self.seconds, self.loss = state["progress"]

    def start_from(self, pipeline: Path) -> None:
        """Take the weights of a saved pipeline as the first ones."""
        for part, name in PARTS.items():
            file = next((pipeline / name).glob("*.safetensors"))
            weights = {key: value.float() for key, value in load_file(file).items()}
            getattr(self.model, part).load_state_dict(weights, strict=False)
        self.average = copy.deepcopy(self.model.state_dict())

    @property
    def share(self) -> float:
        """How much of the training is done, 0 to 1."""
        if self.recipe.steps:
            return self.step / self.recipe.steps
        return self.seconds / (60 * self.recipe.minutes)

    def train_step(self) -> None:
        """Do one step; its randomness depends only on the seed and the step's number."""
        rng = np.random.default_rng([self.recipe.seed, self.step])
        noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
        while len(self.pool.captions) < self.recipe.first_pool:
            self.pool.grow(min(50, self.recipe.first_pool - len(self.pool.captions)))
        self.pool.grow(self.recipe.fresh)
        self.model.use_depth(0.5 if self.share < self.recipe.shallow else 1)
        for group in self.optimizer.param_groups:
            group["lr"] = pace(self.share, self.recipe.rate)
        clean, captions = self.pool.batch(self.recipe.batch, rng)
        loss = flow_loss(self.model, clean, captions, noise)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        value = loss.item()
        self.loss = value if self.step == 1 else 0.98 * self.loss + 0.02 * value
        self._follow()

    def _follow(self) -> None:
        """Move the average towards the weights, sooner in the first steps."""
        self.model.use_depth(1)
        keep = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        now = self.model.state_dict()
        names = [name for name, value in now.items() if value.is_floating_point()]
        mine, theirs = [self.average[n] for n in names], [now[n] for n in names]
        torch._foreach_lerp_(mine, theirs, 1 - keep)

    def run(self, until: int | None = None) -> None:
        """Train to the end of the recipe, or to a step, with a checkpoint every few minutes."""
        saved = begun = time.monotonic()
        before = self.seconds
        while self.share < 1 and (until is None or self.step < until):
            self.train_step()
            self.seconds = before + time.monotonic() - begun
            if self.step % 25 == 0:
                print(f"step {self.step}, {self.seconds:.0f} s, loss {self.loss:.4f}", flush=True)
            if time.monotonic() - saved > 60 * self.recipe.save_minutes:
                self.save()
                saved = time.monotonic()
        self.save()


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=Recipe.minutes)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--batch", type=int, default=Recipe.batch)
    parser.add_argument("--rate", type=float, default=Recipe.rate)
    parser.add_argument("--shallow", type=float, default=Recipe.shallow)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="compile first: 1.4 times as fast")
    parser.add_argument(
        "--bfloat16", action="store_true", help="for CPUs with AVX512-BF16: 1.3 times as fast"
    )
    parser.add_argument("--folder", type=Path, default=Path("build/zoo/run"))
    parser.add_argument("--start", type=Path, help="pipeline folder whose weights to start from")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recipe = Recipe(
        steps=args.steps,
        minutes=args.minutes,
        batch=args.batch,
        rate=args.rate,
        shallow=args.shallow,
        seed=args.seed,
    )
    trainer = Trainer(recipe, args.folder, Size())
    if args.bfloat16:
        trainer.model.multiply_in_bfloat16()
    if args.compile:
        trainer.model.transformer.compile(dynamic=False)
    if args.start and trainer.step == 0:
        trainer.start_from(args.start)
    trainer.run()


if __name__ == "__main__":
    main()
