"""What tests of passes share: a pipeline, its untouched image, its changes from step to step."""

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from planner.case.case import Case
from planner.case.device import Device
from planner.case.telemetry import Telemetry
from planner.case.work import Work
from planner.hooks.beneath import beneath_hooks, own_forward
from planner.hooks.blocks import denoiser_of, segments
from planner.hooks.clock import StepClock
from planner.passes import registry
from planner.passes.base import Artifact, Context
from planner.plans.plan import Plan
from planner.run.apply import Handle, LeavesCaseWarning, put_on
from planner.trials.reference import ReferenceCalls
from tests.tiny import CALL, SDXL_CALL, tiny_case, tiny_flux, tiny_sdxl

H100 = Device(kind="cuda", name="NVIDIA H100", capability=(9, 0), memory_bytes=80 * 2**30)
"""A device that is only declared: what is legal there can be asked here."""


class Bench:
    """One tiny pipeline with its case, and a memo that survives from plan to plan.

    `images` of `call`'s size are drawn at once; `decoded` draws pixels instead of latents.
    """

    def __init__(
        self, images: int = 1, decoded: bool = False, make: Callable[[], Any] = tiny_flux,
        usual: Mapping[str, Any] = CALL, **call: Any,
    ) -> None:  # fmt: skip
        self.pipe = make()
        self.call = dict(usual) | call
        self.images = images
        self.output = "pt" if decoded else "latent"
        self.case: Case = tiny_case(self.pipe, self.call)
        batch = self.case.workload.model_copy(update={"batch_size": images})
        self.case = self.case.model_copy(update={"workload": batch})
        self.memo: dict[str, Any] = {}
        self.artifacts: dict[str, Artifact] = {}

    def draw(self, prompt: str = "a red circle", seed: int = 0, **call: Any) -> torch.Tensor:
        """Return what a plain call draws: the reference call, or the plan's."""
        generator = torch.Generator("cpu").manual_seed(seed)
        arguments = {"output_type": self.output, "generator": generator} | call
        if self.images > 1 and isinstance(prompt, str):
            prompts: Any = [prompt] * self.images
            arguments = {"negative_prompt": [""] * self.images} | arguments
        else:
            prompts = prompt
        if not hasattr(type(self.pipe), "_planner_handle"):
            arguments = self.call | arguments
        drawn: torch.Tensor = self.pipe(prompts, **arguments)[0]  # images, or a video's frames
        return drawn

    @functools.cached_property
    def untouched(self) -> torch.Tensor:
        """What the untouched pipeline draws."""
        return self.draw()

    @functools.cached_property
    def telemetry(self) -> Telemetry:
        """Changes from step to step in the untouched reference call."""
        with self.framed() as (clock, render):
            calls = ReferenceCalls(self.pipe, clock, render, self.case, {}, "untouched")
            return calls.telemetry()

    @functools.cached_property
    def work(self) -> Work:
        """The untouched reference call's work."""
        return self.traced()

    def traced(self) -> Work:
        """The work of the reference call under whatever is on the pipeline."""
        from planner.prediction.trace import trace

        with warnings.catch_warnings():  # a trace runs one step
            warnings.simplefilter("ignore", LeavesCaseWarning)
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
                memo = {"untouched": self.telemetry}
                calls = ReferenceCalls(self.pipe, clock, render, self.case, memo, "untouched")
                self.artifacts[name] = found.calibrate(self.pipe, settings, context, calls)
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


@functools.cache
def large_bench() -> Bench:
    """A bench that draws two images, larger than a decoder's smallest tile, to the pixel."""
    return Bench(images=2, decoded=True, height=288, width=272, num_inference_steps=4)


@functools.cache
def unet_bench() -> Bench:
    """A bench with a U-Net, whose guidance is in the same forward."""
    return Bench(make=tiny_sdxl, usual=SDXL_CALL)


def declared_bench() -> Bench:
    """The shared bench as though it were on a GPU: the case says so, the tensors do not."""
    found = copy.copy(shared_bench())
    found.case = found.case.model_copy(update={"device": H100})
    return found


def without_weights(work: Work) -> Work:
    """Return a work as a trace gives it that does not know which bytes are weights."""
    phases = tuple(
        phase.model_copy(update={
            "operations": tuple(op.model_copy(update={"weights": 0.0}) for op in phase.operations)
        })
        for phase in work.phases
    )  # fmt: skip
    return work.model_copy(update={"phases": phases, "parts": ()})


def newest_bench() -> Bench:
    """The shared bench as though it were on a GPU that has every number format."""
    found = declared_bench()
    device = found.case.device.model_copy(update={"capability": (10, 0)})
    found.case = found.case.model_copy(update={"device": device})
    return found


def deepest(pipe: Any) -> str:
    """Return the path of the block that only a whole forward runs: the last, or a U-Net's mid."""
    denoiser = denoiser_of(pipe)
    if hasattr(denoiser, "mid_block"):
        return "mid_block"
    last = segments(denoiser)[-1]
    return f"{last.name}.{len(last.blocks) - 1}"


def stacks(work: Work, pipe: Any) -> float:
    """Return the denoiser calls that run the stack to its end: the share of its deepest block."""
    inside = f"{deepest(pipe)}."
    return sum(
        phase.calls * [op.share for op in phase.operations if op.path.startswith(inside)][-1]
        for phase in work.phases if phase.name == "denoise"
    )  # fmt: skip


class Executed:
    """Counts what a tiny pipeline really computes: forwards of the denoiser and of its stack.

    Enter it after a plan is on, leave it before: the deepest block is watched underneath all
    hooks and around compiled code.
    """

    def __init__(self, pipe: Any) -> None:
        self.forwards = self.stacks = self.encodings = 0
        denoiser = denoiser_of(pipe)
        last = denoiser.get_submodule(deepest(pipe))
        inner = own_forward(last)

        def stack(*args: Any, **kwargs: Any) -> Any:
            self.stacks += 1
            return inner(*args, **kwargs)

        first = next(layer for name, layer in denoiser.named_children() if name in _FIRST)
        self._undo = [
            beneath_hooks(last, stack),
            first.register_forward_hook(self._forward).remove,
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


_FIRST = ("x_embedder", "conv_in")
"""Layers of which a denoiser has one, which runs in every forward."""

OWN = ("encode_prompt", "_all_hooks", "_offload_device", "_offload_gpu_id")
"""Attributes of a pipeline that only a pass would set on the instance."""


def leftovers(pipe: Any) -> list[str]:
    """Name every trace of a pass: hooks, replaced forwards, caches, casts, flags, backends."""
    found = ["cache"] if getattr(denoiser_of(pipe), "is_cache_enabled", False) else []
    for name, part in pipe.components.items():
        found += [f"{name}.{trace}" for trace in traces(part)] if hasattr(part, "modules") else []
    found += [f"vae.{name}" for name in ("use_tiling", "use_slicing") if getattr(pipe.vae, name)]
    smallest = getattr(pipe.vae, "tile_sample_min_size", 64)
    found += [] if smallest == 64 else ["vae.tile_sample_min_size"]
    found += [] if _process_backend() == "native" else ["the process's attention backend"]
    return found + [f"pipeline.{name}" for name in OWN if name in vars(pipe)]


def traces(root: Any) -> list[str]:
    """Name what passes have left on a module."""
    found = []
    for name, module in root.named_modules():
        own = vars(module)
        registry_ = own.get("_diffusers_hook")
        found += [f"{name}: {hook}" for hook in (registry_.hooks if registry_ else ())]
        found += [f"{name}.{made}" for made in ("forward", "_old_forward", "_hf_hook")
                  if made in own]  # fmt: skip
        found += [f"{name}: torch's hook"] if module._forward_pre_hooks else []
        processor = own.get("processor")
        found += [f"{name}: backend"] if getattr(processor, "_attention_backend", None) else []
    cast = [name for name, weight in root.named_parameters() if weight.dtype != torch.float32]
    return found + [f"{name}: cast" for name in cast]


def _process_backend() -> str:
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    return str(_AttentionBackendRegistry._active_backend.value)
