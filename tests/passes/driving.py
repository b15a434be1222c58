"""What tests of passes share: a pipeline, its untouched image, its changes from step to step."""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.case.work import Work
from planner.hooks.blocks import beneath_hooks, own_forward
from planner.hooks.changes import Recording
from planner.hooks.clock import StepClock
from planner.passes import registry
from planner.passes.base import Artifact, Context
from planner.plans.plan import Plan
from planner.run.apply import Handle, put_on
from tests.tiny import CALL, tiny_case, tiny_flux


class Bench:
    """One tiny pipeline with its case, and a memo that survives from plan to plan."""

    def __init__(self) -> None:
        self.pipe = tiny_flux()
        self.case: Case = tiny_case(self.pipe)
        self.memo: dict[str, Any] = {}
        self.artifacts: dict[str, Artifact] = {}

    def draw(self, prompt: str = "a red circle", seed: int = 0, **call: Any) -> torch.Tensor:
        """Return the latents of a plain call: the reference call, or the plan's."""
        generator = torch.Generator("cpu").manual_seed(seed)
        arguments = {"output_type": "latent", "generator": generator} | call
        if not hasattr(type(self.pipe), "_planner_handle"):
            arguments = CALL | arguments
        latents: torch.Tensor = self.pipe(prompt, **arguments).images
        return latents

    @functools.cached_property
    def untouched(self) -> torch.Tensor:
        """Latents of the untouched pipeline."""
        return self.draw()

    @functools.cached_property
    def telemetry(self) -> Telemetry:
        """Changes from step to step in the untouched reference call."""
        with self.framed() as (clock, render), Recording(self.pipe, clock) as recorder:
            render()
            return recorder.telemetry()

    @functools.cached_property
    def work(self) -> Work:
        """The untouched reference call's work."""
        from planner.prediction.trace import trace

        return trace(self.pipe, self.case.workload)

    @contextmanager
    def framed(self) -> Iterator[tuple[StepClock, Callable[[], None]]]:
        """A clock on the pipeline and a render under it, as the worker calibrates."""
        clock = StepClock()
        detach = clock.attach(self.pipe.scheduler)

        def render() -> None:
            with clock.call():
                self.draw()

        try:
            yield clock, render
        finally:
            detach()

    def artifact(self, name: str) -> Artifact:
        """What the pass learns on the untouched pipeline, calibrated once."""
        found = registry.get(name)
        if name not in self.artifacts and found.calibrate is not None:
            with self.framed() as (clock, render):
                context = Context(case=self.case, clock=clock)
                settings = found.settings()
                self.artifacts[name] = found.calibrate(self.pipe, settings, context, render)
        return self.artifacts.get(name, {})

    def put(self, passes: Mapping[str, Mapping[str, Any]]) -> Handle:
        """Put a plan on, with calibrated artifacts where its passes need them."""
        plan = Plan.of(passes)
        artifacts = {name: self.artifact(name) for name in plan.names if self.artifact(name)}
        return put_on(self.pipe, plan, self.case, artifacts, self.memo)


@functools.cache
def shared_bench() -> Bench:
    """The one bench of a test run, so that calibration and compiling happen once."""
    return Bench()


class Executed:
    """Counts what a tiny Flux really computes: forwards of the denoiser and of its stack.

    Enter it after a plan is on, leave it before: the last block is watched underneath all hooks
    and around compiled code.
    """

    def __init__(self, pipe: Any) -> None:
        self.forwards = self.stacks = self.encodings = 0
        last = pipe.transformer.single_transformer_blocks[-1]
        inner = own_forward(last)

        def stack(*args: Any, **kwargs: Any) -> Any:
            self.stacks += 1
            return inner(*args, **kwargs)

        self._undo = [
            beneath_hooks(last, stack),
            pipe.transformer.x_embedder.register_forward_hook(self._forward).remove,
            pipe.text_encoder.register_forward_hook(self._encode).remove,
        ]

    def _forward(self, *_: Any) -> None:
        self.forwards += 1

    def _encode(self, *_: Any) -> None:
        self.encodings += 1

    def __enter__(self) -> "Executed":
        return self

    def __exit__(self, *_: object) -> None:
        for undo in self._undo:
            undo()


def leftovers(pipe: Any) -> list[str]:
    """Name every trace of a pass on the denoiser: hooks, replaced forwards, enabled caches."""
    found = ["cache"] if pipe.transformer.is_cache_enabled else []
    for name, module in pipe.transformer.named_modules():
        registry_ = vars(module).get("_diffusers_hook")
        found += [f"{name}: {hook}" for hook in (registry_.hooks if registry_ else ())]
        found += [f"{name}.forward"] if "forward" in vars(module) else []
    return found + [f"pipeline.{name}" for name in ("encode_prompt",) if name in vars(pipe)]
