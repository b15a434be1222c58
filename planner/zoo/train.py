"""Train the denoiser: `python -m planner.zoo.train --minutes 75`.

It goes on from its checkpoint where there is one, and otherwise from `--start`, a pipeline folder
such as the committed weights (give a new `--seed` then, for new scenes).
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from planner.zoo.autoencoder import pace
from planner.zoo.lessons import LayoutReader, lesson
from planner.zoo.model import Denoiser, Size, flow_loss
from planner.zoo.patches import code
from planner.zoo.team import Team, together

PARTS = {"clip": "text_encoder", "t5": "text_encoder_2", "transformer": "transformer"}


@dataclass(frozen=True)
class Recipe:
    """How to train; the end is a number of steps or, if that is 0, of minutes.

    `batch` is what each of the `workers` takes a step, so a step sees batch x workers scenes.
    """

    steps: int = 0
    minutes: float = 75.0
    batch: int = 16
    workers: int = 1
    rate: float = 8e-4
    ema: float = 0.998
    layout: float = 0.5
    seed: int = 0
    save_minutes: float = 5.0
    compiled: bool = False
    bfloat16: bool = False


class Trainer:
    """Weights, their moving average and the optimizer, all of it resumable."""

    def __init__(self, recipe: Recipe, folder: Path, size: Size, start: Path | None = None) -> None:
        """Build everything, from the checkpoint in `folder`, or else from the pipeline `start`."""
        torch.manual_seed(recipe.seed)
        self.recipe, self.folder, self.team = recipe, folder, Team()
        self.model, self.known = Denoiser(size), code()
        self.reader = LayoutReader(self.model.transformer.inner_dim)
        self.average = copy.deepcopy(self.model.state_dict())
        self.optimizer = torch.optim.AdamW(
            self.learned, lr=recipe.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.step, self.seconds, self.loss, self.misread = 0, 0.0, float("nan"), float("nan")
        if self.checkpoint.exists():
            self._restore(torch.load(self.checkpoint, weights_only=True))
        elif start:
            self.start_from(start)
        if recipe.bfloat16:
            self.model.multiply_in_bfloat16()
        if recipe.compiled:
            self.model.compile_blocks()

    def __str__(self) -> str:
        """Return how far it is, and both parts of the loss, smoothed."""
        done = f"step {self.step}, {self.seconds:.0f} s"
        return f"{done}, velocity {self.loss:.4f}, layout {self.misread:.4f}"

    @property
    def learned(self) -> list[nn.Parameter]:
        """The parameters that training changes."""
        return [*self.model.parameters(), *self.reader.parameters()]

    @property
    def checkpoint(self) -> Path:
        """Where the whole state lies."""
        return self.folder / "state.pt"

    def save(self) -> None:
        """Write the whole state; a crash leaves the old one whole."""
        state = {
            "model": self.model.state_dict(),
            "reader": self.reader.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "progress": [self.step, self.seconds, self.loss, self.misread],
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.checkpoint)

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.reader.load_state_dict(state["reader"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.loss, self.misread = state["progress"]

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

    def train_step(self, seconds: float) -> None:
        """Do one step, `seconds` after the first; all else depends on the seed and its number."""
        loss = self.step_loss(self.step * self.team.size + self.team.rank)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        gradients = [p.grad for p in self.learned if p.grad is not None]
        self.seconds = self.team.average(gradients, seconds)
        self.descend()

    def step_loss(self, place: int) -> Tensor:
        """Return velocity error plus weighted layout error of the scenes at one place in line."""
        rng = np.random.default_rng([self.recipe.seed, place])
        noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
        first = self.recipe.seed * 10**7 + place * self.recipe.batch
        batch = lesson(first, self.recipe.batch, self.known, rng)
        velocity = flow_loss(self.model, batch.clean, batch.captions, noise)
        misread = self.reader.loss(self.model.inner, batch.layout)
        self.loss = _smooth(self.loss, velocity.item())
        self.misread = _smooth(self.misread, misread.item())
        return velocity + self.recipe.layout * misread

    def descend(self) -> None:
        """Move the weights along their gradients, and the average after them."""
        for group in self.optimizer.param_groups:
            group["lr"] = pace(self.share, self.recipe.rate)
        nn.utils.clip_grad_norm_(self.learned, 1.0)
        self.optimizer.step()
        self.step += 1
        self._follow()

    def _follow(self) -> None:
        """Move the average towards the weights, sooner in the first steps."""
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
            self.train_step(before + time.monotonic() - begun)
            if self.team.rank:
                continue
            if self.step % 25 == 0:
                print(self, flush=True)
            if time.monotonic() - saved > 60 * self.recipe.save_minutes:
                self.save()
                saved = time.monotonic()
        if not self.team.rank:
            self.save()


def _smooth(mean: float, value: float) -> float:
    return value if math.isnan(mean) else 0.98 * mean + 0.02 * value


def train(team: Team, recipe: Recipe, folder: Path, size: Size, start: Path | None) -> None:
    """Train as one member of a team, to the end of the recipe."""
    trainer = Trainer(recipe, folder, size, start)
    trainer.team = team
    trainer.run()


def train_together(recipe: Recipe, folder: Path, size: Size, start: Path | None = None) -> None:
    """Train in `recipe.workers` processes of one thread each, to the end of the recipe."""
    count = sum(p.numel() for p in Trainer(recipe, folder, size).learned)
    together(Team(recipe.workers, count), train, recipe, folder, size, start)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=Recipe.minutes)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--batch", type=int, default=Recipe.batch, help="scenes a step and worker")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--rate", type=float, default=Recipe.rate)
    parser.add_argument("--ema", type=float, default=Recipe.ema)
    parser.add_argument("--layout", type=float, default=Recipe.layout, help="weight of layouts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compiled", action="store_true", help="compile the blocks first")
    parser.add_argument("--bfloat16", action="store_true", help="for CPUs with AVX512-BF16")
    parser.add_argument("--folder", type=Path, default=Path("build/zoo/run"))
    parser.add_argument("--start", type=Path, help="pipeline folder whose weights to start from")
    given = vars(parser.parse_args())
    folder, start = given.pop("folder"), given.pop("start")
    train_together(Recipe(**given), folder, Size(), start)


if __name__ == "__main__":
    main()
