"""Train the denoiser: `python -m planner.zoo.train --minutes 75`.

It goes on from its checkpoint where there is one, and otherwise from `--start`, a pipeline folder
such as the committed weights (give a new `--seed` then, for new scenes).
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from planner.zoo.autoencoder import pace
from planner.zoo.lessons import LayoutReader, Lesson, Lessons
from planner.zoo.model import Denoiser, Size, flow_loss
from planner.zoo.patches import ahead
from planner.zoo.team import Team, together

PARTS = {"clip": "text_encoder", "t5": "text_encoder_2", "transformer": "transformer"}


@dataclass(frozen=True)
class Recipe:
    """How to train; the end is a number of steps or, if that is 0, of minutes.

    `batch` is how many scenes each of the `workers` takes a step, and each scene is learned at so
    many noise `levels`: a step sees batch x workers x levels samples. So many `drawers` are
    processes that draw scenes ahead; without them the trainer draws its own.
    """

    steps: int = 0
    minutes: float = 75.0
    batch: int = 16
    levels: int = 1
    workers: int = 1
    drawers: int = 0
    rate: float = 8e-4
    ema: float = 0.998
    layout: float = 0.5
    seed: int = 0
    save_minutes: float = 5.0
    compiled: bool = False
    bfloat16: bool = False
    device: str = "cpu"


class Trainer:
    """Weights, their moving average and the optimizer, all of it resumable."""

    def __init__(self, recipe: Recipe, folder: Path, size: Size, start: Path | None = None) -> None:
        """Build everything, from the checkpoint in `folder`, or else from the pipeline `start`."""
        torch.manual_seed(recipe.seed)
        self.recipe, self.folder, self.team = recipe, folder, Team()
        self.device = torch.device(recipe.device)
        # The backward pass of cuDNN's attention read outside its memory (torch 2.11, H200).
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.model = Denoiser(size).to(self.device)
        self.lessons = Lessons(recipe.seed, recipe.batch, self.model.words)
        self.reader = LayoutReader(self.model.transformer.inner_dim).to(self.device)
        self.average = copy.deepcopy(self.model.state_dict())
        self.optimizer = torch.optim.AdamW(
            self.learned, lr=recipe.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.step, self.seconds = 0, 0.0
        self.loss = self.misread = torch.zeros((), device=self.device)
        if self.checkpoint.exists():
            self._restore(torch.load(self.checkpoint, self.device, weights_only=True))
        elif start:
            self.start_from(start)
        if recipe.bfloat16 and self.device.type == "cpu":
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
            "progress": [self.step, self.seconds],
            "losses": [self.loss, self.misread],
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
        self.step, self.seconds = state["progress"]
        self.loss, self.misread = state["losses"]

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

    @cached_property
    def _drawn(self) -> Iterator[Lesson]:
        """The lessons of this member of the team, from the present step on."""
        place = self.step * self.team.size + self.team.rank
        pinned = self.device.type == "cuda"
        return ahead(self.lessons, place, self.team.size, self.recipe.drawers, pinned)

    def train_step(self, seconds: float) -> None:
        """Do one step, `seconds` after the first; all else depends on the seed and its number."""
        loss = self.step_loss(next(self._drawn), self.step * self.team.size + self.team.rank)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        gradients = [p.grad for p in self.learned if p.grad is not None]
        self.seconds = self.team.average(gradients, seconds)
        self.descend()

    def step_loss(self, lesson: Lesson, place: int) -> Tensor:
        """Return velocity error plus weighted layout error of a lesson and its place in line."""
        noise = torch.Generator(self.device).manual_seed(self.recipe.seed * 10**7 + place)
        batch = lesson.on(self.device, self.recipe.levels)
        rounded = self.recipe.bfloat16 and self.device.type != "cpu"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=rounded):
            velocity = flow_loss(self.model, batch.clean, batch.clip, batch.t5, noise)
            misread = self.reader.loss(self.model.inner, batch.layout)
        self.loss = self._smooth(self.loss, velocity)
        self.misread = self._smooth(self.misread, misread)
        return velocity + self.recipe.layout * misread

    def _smooth(self, mean: Tensor, value: Tensor) -> Tensor:
        """Return a running mean, which stays on the device: reading it would wait for the step."""
        return value.detach() if self.step == 0 else torch.lerp(mean, value.detach(), 0.02)

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
        torch._foreach_lerp_(*self._moving, 1 - keep)

    @cached_property
    def _moving(self) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors of the average, and those they follow."""
        now = self.model.state_dict()
        names = [name for name, value in now.items() if value.is_floating_point()]
        return [self.average[n] for n in names], [now[n] for n in names]

    def run(self, until: int | None = None) -> None:
        """Train to the end of the recipe, or to a step, with a checkpoint every few minutes.

        The clock starts after the first step, in which blocks are compiled and drawers started.
        """
        saved = begun = time.monotonic()
        first, before = self.step, self.seconds
        while self.share < 1 and (until is None or self.step < until):
            self.train_step(before + time.monotonic() - begun)
            begun = time.monotonic() if self.step == first + 1 else begun
            if self.team.rank:
                continue
            if self.step % 25 == 0:
                print(self, flush=True)
            if time.monotonic() - saved > 60 * self.recipe.save_minutes:
                self.save()
                saved = time.monotonic()
        if not self.team.rank:
            self.save()


def train(team: Team, recipe: Recipe, folder: Path, size: Size, start: Path | None) -> None:
    """Train as one member of a team, to the end of the recipe."""
    trainer = Trainer(recipe, folder, size, start)
    trainer.team = team
    trainer.run()


def train_together(recipe: Recipe, folder: Path, size: Size, start: Path | None = None) -> None:
    """Train in `recipe.workers` processes of one thread each, to the end of the recipe."""
    if recipe.device != "cpu":
        return train(Team(), recipe, folder, size, start)
    count = sum(p.numel() for p in Trainer(recipe, folder, size).learned)
    return together(Team(recipe.workers, count), train, recipe, folder, size, start)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=Recipe.minutes)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--batch", type=int, default=Recipe.batch, help="scenes a step and worker")
    parser.add_argument("--levels", type=int, default=Recipe.levels, help="noise levels a scene")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--drawers", type=int, default=0, help="processes that draw scenes")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda with one worker")
    parser.add_argument("--rate", type=float, default=Recipe.rate)
    parser.add_argument("--ema", type=float, default=Recipe.ema)
    parser.add_argument("--layout", type=float, default=Recipe.layout, help="weight of layouts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-minutes", type=float, default=Recipe.save_minutes)
    parser.add_argument("--compiled", action="store_true", help="compile the blocks first")
    parser.add_argument("--bfloat16", action="store_true", help="for CPUs with AVX512-BF16, GPUs")
    parser.add_argument("--folder", type=Path, default=Path("build/zoo/run"))
    parser.add_argument("--start", type=Path, help="pipeline folder whose weights to start from")
    given = vars(parser.parse_args())
    folder, start = given.pop("folder"), given.pop("start")
    train_together(Recipe(**given), folder, Size(), start)


if __name__ == "__main__":
    main()
