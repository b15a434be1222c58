"""The pipeline of a comparison: loaded once, called the same way for every method."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.case.prompts import Prompt
from planner.case.telemetry import Telemetry
from planner.case.workload import Workload
from planner.measure.images import Pixels, check_images, load_png, save_png, to_pixels
from planner.measure.timing import timed
from planner.run.devices.base import backend
from planner.run.pipeline import PipelineSource, case_of, load_pipeline

if TYPE_CHECKING:
    from planner.measure.lpips import Lpips


class Rig:
    """A loaded pipeline, and the untouched images that others are compared with.

    `memo` makes putting the same plan on again cheap; `recorded` is what reference calls showed, by
    what they depend on. Images lie in `<folder>/<prompt id>.png`.
    """

    def __init__(self, source: PipelineSource, workload: Workload, folder: Path) -> None:
        """Load the pipeline. Raises as `load_pipeline` does."""
        self.source, self.folder = source, folder
        self.pipeline = load_pipeline(source)
        self.case = case_of(self.pipeline, source, workload)
        self.memo: dict[str, Any] = {}
        self.recorded: dict[Any, Telemetry] = {}
        self._backend = backend(source.device)
        gc.collect()
        gc.freeze()  # what is loaded stays: no later collection need look at it

    def call(self, prompt: Prompt, arguments: Mapping[str, Any]) -> tuple[float, Pixels]:
        """Time one call with what is on the pipeline; returns its seconds and its image.

        The same latents for every method, made on the CPU. Raises `TrialFailed` (stage guard)
        for an image that no metric may judge.
        """
        import torch

        given: dict[str, Any] = {
            **arguments, "prompt": prompt.text, "output_type": "np",
            "generator": torch.Generator("cpu").manual_seed(prompt.seed),
        }  # fmt: skip
        gc.collect()
        seconds, output = timed(lambda: self.pipeline(**given), self._backend)
        check_images(output.images[:1])
        return seconds, to_pixels(output.images[0])

    def untouched(self, prompt: Prompt) -> tuple[float, Pixels]:
        """Time one call of the reference, with nothing on."""
        return self.call(prompt, self.case.workload.call)

    def has_reference(self, prompt: Prompt) -> bool:
        """Tell whether the untouched image of a prompt is there."""
        return self._file(prompt).exists()

    def keep_reference(self, prompt: Prompt, pixels: Pixels) -> None:
        """Keep the untouched image of a prompt."""
        save_png(pixels, self._file(prompt))

    def reference(self, prompt: Prompt) -> Pixels:
        """Return the untouched image of a prompt. Raises `InvalidFile` where it is none."""
        return load_png(self._file(prompt))

    def distance(self, pixels: Pixels, prompt: Prompt) -> float:
        """Return the LPIPS of an image to the untouched one."""
        return self._lpips.distance(pixels, self.reference(prompt))

    @cached_property
    def _lpips(self) -> Lpips:
        from planner.measure.lpips import Lpips

        return Lpips()

    def _file(self, prompt: Prompt) -> Path:
        return self.folder / f"{prompt.id}.png"
