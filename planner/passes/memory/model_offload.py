"""Let whole components take turns on the device.

What it does: text encoders, denoiser and VAE rest on the host; each moves to the device for its
part of the call and back when the next one comes.
When it helps: all components together do not fit, the largest alone does. Image pipelines with
large text encoders: FLUX.1 needs 24 GB instead of 34.
What it costs: every weight crosses the link twice a call, and nothing is computed meanwhile.
When not: everything fits, or the denoiser alone does not. Text that is remembered by its encoder's
state is never found again, since moving changes that state.
Source: diffusers' enable_model_cpu_offload, accelerate's cpu_offload_with_hook.
"""

from __future__ import annotations

from typing import Any

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.case.work import Part, Phase, Work
from planner.hooks.blocks import denoisers_of
from planner.hooks.residence import swept
from planner.passes.base import (
    Avoid,
    Context,
    Family,
    Fidelity,
    Need,
    NoSettings,
    Pass,
    Stage,
    Undo,
)
from planner.passes.needs import on_cuda

_MARKS = ("_all_hooks", "_offload_device", "_offload_gpu_id")
"""What diffusers leaves on the pipeline."""

_WAYS = 2
"""A component crosses the link to the device and back: accelerate keeps no copy on the host."""


def apply(pipeline: Any, settings: NoSettings, context: Context) -> Undo:
    """Let components take turns on the device where the pipeline is to run."""
    import torch

    device = context.device or next(iter(denoisers_of(pipeline).values())).device
    parts = {n: p for n, p in pipeline.components.items() if isinstance(p, torch.nn.Module)}
    homes = {name: next(part.parameters()).device for name, part in parts.items()}
    before = {mark: vars(pipeline)[mark] for mark in _MARKS if mark in vars(pipeline)}

    def undo() -> None:
        pipeline.remove_all_hooks()
        for mark in _MARKS:
            vars(pipeline).pop(mark, None)
        vars(pipeline).update(before)
        for name, part in parts.items():
            swept(part)
            part.to(homes[name])

    try:
        pipeline.enable_model_cpu_offload(device=device)
    except BaseException:
        undo()
        raise
    context.statistics.update(components=len(pipeline._all_hooks))
    return undo


def effect(work: Work, settings: NoSettings, telemetry: Telemetry | None) -> Work:
    """Rest every component on the host; its phase's first stretch pays for the way in and out."""
    waiting = {name: 0.0 for name in ("encode", "denoise", "decode")}
    for part in work.parts:
        waiting[part.phase] += part.bytes * _WAYS if part.place == "device" else 0.0

    def resting(part: Part) -> Part:
        return part.model_copy(update={"place": "host"}) if part.place == "device" else part

    def moved(phase: Phase) -> Phase:
        crossed = waiting.pop(phase.name, 0.0)
        if not crossed:
            return phase
        return phase.model_copy(update={"transfers": phase.transfers + crossed})

    changed = work.mapped(moved)
    return changed.model_copy(update={"parts": tuple(map(resting, work.parts))})


def _takes_turns(case: Case) -> str | None:
    own = ("text_encoder", "vae", "image_encoder")
    if any(name.startswith(own) for name in case.model.components):
        return None
    return f"model_offload needs parts that take turns; {case.model.pipeline} has a denoiser only"


_SOURCE = "diffusers DiffusionPipeline.enable_model_cpu_offload"

PASS = Pass(
    name="model_offload",
    family=Family.MEMORY,
    stage=Stage.OFFLOAD,
    fidelity=Fidelity.EXACT,
    source=_SOURCE,
    owns=("denoiser.place",),
    imports=("accelerate>=0.17",),
    needs=(
        on_cuda("model_offload", f"{_SOURCE}: raises where no accelerator is found"),
        Need(_takes_turns, _SOURCE),
    ),
    avoids=(
        Avoid(
            "text_encoder_offload",
            "model offload refuses a pipeline in which a component is group-offloaded",
            "diffusers DiffusionPipeline._maybe_raise_error_if_group_offload_active",
        ),
        Avoid(
            "prompt_embedding_cache",
            "moving the text encoders changes what it knows them by: no text is found again",
            "accelerate CpuOffload: module.to gives weights new memory at every move",
            "slower",
        ),
    ),
    effect=effect,
    apply=apply,
    batch_invariant=True,
)
