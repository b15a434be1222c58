"""What a worker does to its pipeline: plans on and off, calibrations, timed calls, distances."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from planner.case.prompts import Prompt, Sample, by_call, hash_prompts
from planner.case.telemetry import Telemetry
from planner.case.workload import Workload
from planner.errors import PlannerError, TrialFailed
from planner.hooks.clock import StepClock
from planner.measure.images import check_images, load_png, save_png, to_pixels
from planner.measure.timing import timed, warm
from planner.passes import registry
from planner.passes.base import Artifact, Context, Reference
from planner.plans.plan import BASELINE, Plan, PlannedPass
from planner.run.apply import Handle, put_on
from planner.run.calls import reference_call
from planner.run.devices.base import backend
from planner.run.pipeline import PipelineSource, case_of, load_pipeline
from planner.trials.failing import failing_at
from planner.trials.protocol import Put, Which
from planner.trials.reference import ReferenceCalls, Telemetries

if TYPE_CHECKING:
    from planner.measure.lpips import Lpips

BASELINE_FOLDER = "baseline"
"""Where, below a study's images, the untouched pipeline's lie as <prompt id>.png."""

Calibrate = Callable[[Any, Any, Context, Reference], Artifact]


class Batch(NamedTuple):
    """The prompts of one pipeline call, of which the first `wanted` were asked for."""

    prompts: tuple[Prompt, ...]
    wanted: int


class Renderer:
    """A loaded pipeline with at most one plan on it.

    `case` says what was loaded, with the workload that every call follows. Images of a plan go
    to `<images>/<first 12 digits of its digest>/<prompt id>.png`.
    """

    def __init__(self, source: PipelineSource, workload: Workload, images: Path) -> None:
        """Load the pipeline. Raises as `load_pipeline` does."""
        self._source = source
        self._images = images
        self._backend = backend(source.device)
        self._handle: Handle | None = None
        self._last: tuple[Prompt, Any] | None = None
        # Kept here too, for plans that fail after calibrating and so return no artifact.
        self._learned: dict[tuple[str, Plan, str], Artifact] = {}
        self._telemetry = Telemetries()
        self._load()
        self.case = case_of(self._pipeline, source, workload)

    def _load(self) -> None:
        self._pipeline = load_pipeline(self._source)
        self._memo: dict[str, Any] = {}
        gc.collect()
        gc.freeze()  # what is loaded stays: no later collection need look at it
        self._first_peak = 0

    def put(
        self, plan: Plan, artifacts: Mapping[str, Artifact], prompts: Sequence[Prompt],
        settle: bool = False,
    ) -> Put:  # fmt: skip
        """Put a plan on in place of the one before, calibrate what has no artifact, run once.

        To `settle`, it is run until two calls agree.
        Raises `TrialFailed` with stage calibrate, apply, warm, guard, observe or memory.
        """
        self._take_off()
        gc.collect()
        began = time.perf_counter()
        known = self._calibrated(plan, artifacts, prompts)
        calibrated = time.perf_counter()
        with failing_at("apply", plan):
            handle = put_on(self._pipeline, plan, self.case, known, self._memo)
        applied = time.perf_counter()
        self._handle = handle
        batch = self._batches(prompts)[0]
        seconds, _ = self._candidate_call(handle, batch, "warm")
        self._first_peak = self._backend.peak_bytes()
        if settle:
            warm(lambda: self._candidate_call(handle, batch, "warm"), self._backend)
        return Put(
            apply_seconds=applied - calibrated, calibrate_seconds=calibrated - began,
            first_call_seconds=seconds, artifacts=known, reversible=reversible(plan),
            recorded=self._telemetry.news(),
        )  # fmt: skip

    def render(self, which: Which, prompts: Sequence[Prompt], save: bool) -> list[Sample]:
        """Time one call for every batch of prompts, then compare and keep its images.

        An image is compared with the untouched pipeline's where that is there already, and an
        untouched image is kept only where it is not. A short last batch is filled up from the
        first prompts. Raises `TrialFailed` with stage render, guard, observe or memory.
        """
        calls = self._batches(prompts)
        if which == "candidate":
            return [self._candidate(batch, save) for batch in calls]
        with self._untouched():
            return [self._baseline(batch, save) for batch in calls]

    def _candidate(self, batch: Batch, save: bool) -> Sample:
        if self._handle is None:
            raise PlannerError("no plan is on the worker's pipeline", way_out="put one on first")
        seconds, images = self._candidate_call(self._handle, batch, "render")
        sample = self._sample(batch, seconds, images)
        if save:
            self._keep(batch, images, self._handle.plan.digest()[:12])
        peak = max(self._first_peak, sample.memory_bytes)
        return sample.model_copy(
            update={"statistics": self._handle.stats, "memory_bytes": peak}
        )

    def _baseline(self, batch: Batch, save: bool) -> Sample:
        texts = [prompt.text for prompt in batch.prompts]
        with failing_at("render", BASELINE):
            seconds, images = self._call(batch, reference_call(self.case.workload, texts))
        sample = self._sample(batch, seconds, images)
        if save and not sample.lpips:
            self._keep(batch, images, BASELINE_FOLDER)
        return sample

    def _candidate_call(self, handle: Handle, batch: Batch, stage: str) -> tuple[float, list[Any]]:
        """Call the pipeline as a user would, and let every pass say whether it took part."""
        texts = [prompt.text for prompt in batch.prompts]
        with failing_at(stage, handle.plan):
            seconds, images = self._call(batch, {"prompt": texts if texts[1:] else texts[0]})
        with failing_at("observe", handle.plan):
            complaints = handle.complaints()
        if complaints:
            said = "; ".join(f"{name}: {sentence}" for name, sentence in complaints.items())
            raise TrialFailed(
                f"plan '{handle.plan}' did not do what it says ({said})",
                stage="observe",
                value=str(handle.stats),
                way_out="leave the pass out, or widen its settings",
            )
        return seconds, images

    def _call(self, batch: Batch, arguments: dict[str, Any]) -> tuple[float, list[Any]]:
        """Time one call; returns its seconds and the wanted images as floats, checked."""
        import torch

        # The tuner owns all randomness: on both sides the same latents, made on the CPU.
        noise = [torch.Generator("cpu").manual_seed(prompt.seed) for prompt in batch.prompts]
        gc.collect()
        self._backend.reset_peak()  # an untouched call just before must not count
        seconds, output = timed(
            lambda: self._pipeline(**arguments, generator=noise, output_type="np"), self._backend
        )
        images = list(output.images)[: batch.wanted]
        check_images(images, self._another(batch))
        self._last = batch.prompts[batch.wanted - 1], images[-1]
        return seconds, images

    def _another(self, batch: Batch) -> Any:
        """Return the last image of another prompt, to find a cache that replays it."""
        prompt, image = self._last or (None, None)
        return None if prompt == batch.prompts[0] else image

    def _sample(self, batch: Batch, seconds: float, images: Sequence[Any]) -> Sample:
        memory = self._backend.peak_bytes()  # before LPIPS takes its own
        wanted = batch.prompts[: batch.wanted]
        references = [self._file(BASELINE_FOLDER, prompt) for prompt in wanted]
        distances: list[float] = []
        if all(reference.exists() for reference in references):
            pixels = [to_pixels(image) for image in images]
            distances = self._lpips.distances(pixels, [load_png(file) for file in references])
        return Sample(
            prompts=tuple(prompt.id for prompt in wanted), seconds=seconds,
            lpips=tuple(distances), memory_bytes=memory,
        )  # fmt: skip

    @cached_property
    def _lpips(self) -> Lpips:
        from planner.measure.lpips import Lpips

        return Lpips()

    def _keep(self, batch: Batch, images: Sequence[Any], folder: str) -> None:
        for prompt, image in zip(batch.prompts[: batch.wanted], images, strict=True):
            file = self._file(folder, prompt)
            try:
                save_png(to_pixels(image), file)
            except OSError as error:
                way_out = "free some space or make the folder writable, then go on with --resume"
                raise PlannerError(f"cannot write image {file} ({error.strerror})",
                                   value=str(file), way_out=way_out) from error  # fmt: skip

    def _file(self, folder: str, prompt: Prompt) -> Path:
        return self._images / folder / f"{prompt.id}.png"

    def _calibrated(
        self, plan: Plan, artifacts: Mapping[str, Artifact], prompts: Sequence[Prompt]
    ) -> dict[str, Artifact]:
        """Return the artifacts of this plan's passes: those given, and new ones for the rest."""
        known = {name: dict(artifact) for name, artifact in artifacts.items() if name in plan}
        for entry in plan.passes:
            one, settings = registry.get(entry.name), entry.parsed()
            if one.calibrate is None or one.serves(known.get(entry.name, {}), settings):
                continue
            key = (entry.name, plan.before(entry.name), hash_prompts(prompts))
            if not one.serves(self._learned.get(key, {}), settings):
                with failing_at("calibrate", plan):
                    found = self._calibrate(one.calibrate, plan, entry, known, prompts)
                self._learned[key] = self._learned.get(key, {}) | found
            known[entry.name] = self._learned[key]
        return known

    def _calibrate(
        self, learn: Calibrate, plan: Plan, entry: PlannedPass, known: Mapping[str, Artifact],
        prompts: Sequence[Prompt],
    ) -> Artifact:  # fmt: skip
        """Let one pass learn with all earlier passes on; returns what a policy would hold."""
        with self._reference(plan.before(entry.name), known, prompts) as (reference, clock):
            context = Context(
                case=self.case, clock=clock, plan=tuple((p.name, p.parsed()) for p in plan.passes),
                memo=self._memo.setdefault(entry.name, {}),
            )  # fmt: skip
            artifact = learn(self._pipeline, entry.parsed(), context, reference)
        return dict(json.loads(json.dumps(artifact, allow_nan=False)))

    def record(self, plan: Plan, prompts: Sequence[Prompt]) -> Telemetry:
        """Return what reference calls under a plan show: see `hooks.recorder`.

        Raises `TrialFailed` with stage calibrate, apply, guard, observe or memory.
        """
        self._take_off()
        known = self._calibrated(plan, {}, prompts)
        with failing_at("calibrate", plan), self._reference(plan, known, prompts) as (calls, _):
            return calls.telemetry()

    @contextmanager
    def _reference(
        self, prefix: Plan, known: Mapping[str, Artifact], prompts: Sequence[Prompt]
    ) -> Iterator[tuple[ReferenceCalls, StepClock]]:
        """Give reference calls under a plan, with their clock, inside the block."""
        handle = put_on(self._pipeline, prefix, self.case, known, self._memo)
        clock = StepClock()
        detach = clock.attach(self._pipeline.scheduler)

        def render() -> None:
            for batch in self._batches(prompts):
                with clock.call():
                    self._candidate_call(handle, batch, "calibrate")

        key = (prefix, hash_prompts(prompts))
        calls = ReferenceCalls(self._pipeline, clock, render, self.case, self._telemetry, key)
        try:
            yield calls, clock
        finally:
            detach()
            if reversible(prefix):
                handle.remove()
            else:
                self._load()

    def _take_off(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            with failing_at("apply", handle.plan):
                handle.remove()

    def _untouched(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._handle is None else self._handle.suspended()

    def _batches(self, prompts: Sequence[Prompt]) -> list[Batch]:
        return batches(prompts, self.case.workload.batch_size)


def batches(prompts: Sequence[Prompt], size: int) -> list[Batch]:
    """Cut prompts into calls of `size`; a short last one is filled up from the first prompts.

    A call of another size would be another workload: slower or faster, compiled anew.
    """
    cut = by_call(prompts, size)
    return [Batch((wanted + tuple(prompts) * size)[:size], len(wanted)) for wanted in cut]


def reversible(plan: Plan) -> bool:
    """Tell whether every pass of a plan has an honest undo."""
    return all(registry.get(name).reversible for name in plan.names)
