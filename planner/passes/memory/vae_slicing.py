"""Decode the images of a batch one after the other.

What it does: the VAE decodes one image at a time, so that the decoder's activations do not grow
with the batch.
When it helps: several images a call; the peak of decoding falls by their number.
What it costs: as many small decodes instead of one large one; next to nothing for large images.
When not: one image a call, where nothing happens.
Source: diffusers' AutoencoderMixin.enable_slicing.
"""

from __future__ import annotations

from typing import Any

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.case.work import Operation, Phase, Work
from planner.case.workload import Workload
from planner.hooks.decoder import COUNT, count_decodes
from planner.passes.base import (
    Context,
    Family,
    Fidelity,
    Need,
    NoSettings,
    Pass,
    Stage,
    Statistics,
    Undo,
)

WITHOUT = frozenset({
    "VQModel", "AsymmetricAutoencoderKL", "ConsistencyDecoderVAE", "AutoencoderKLTemporalDecoder",
})  # fmt: skip
"""VAEs of diffusers 0.42.1 that decode a batch at once, whatever is asked."""


def apply(pipeline: Any, settings: NoSettings, context: Context) -> Undo:
    """Turn slicing on, and count the slices."""
    vae = pipeline.vae
    before = vae.use_slicing
    vae.enable_slicing()
    stop = count_decodes(vae, context.statistics, context.clock)

    def undo() -> None:
        stop()
        vae.use_slicing = before

    return undo


def effect(work: Work, settings: NoSettings, telemetry: Telemetry | None) -> Work:
    """Decode one image at a time: as many calls, each of one image's work and memory."""
    if work.batch < 2:
        return work

    def sliced(op: Operation) -> Operation:
        moved = (op.bytes - op.weights) / work.batch + op.weights
        return op.model_copy(update={"flops": op.flops / work.batch, "bytes": moved})

    def phase_of(phase: Phase) -> Phase:
        if phase.name != "decode":
            return phase
        return phase.model_copy(update={
            "calls": phase.calls * work.batch, "peak": phase.peak / work.batch,
            "operations": tuple(map(sliced, phase.operations)),
        })  # fmt: skip

    return work.mapped(phase_of)


def observe(settings: NoSettings, statistics: Statistics, workload: Workload) -> str | None:
    """Answer a sentence if the batch was decoded at once."""
    if statistics.get(COUNT) != 1:
        return None
    return f"vae_slicing decoded {workload.images} images at once"


def _several(case: Case) -> str | None:
    images = case.workload.images
    if images > 1:
        return None
    return f"vae_slicing needs two images a call or more; this call draws {images}"


def _slices(case: Case) -> str | None:
    vae = case.model.components.get("vae")
    if vae is not None and vae.class_name not in WITHOUT:
        return None
    had = "none" if vae is None else vae.class_name
    return f"vae_slicing needs a VAE that can slice; {case.model.pipeline} has {had}"


_SOURCE = "diffusers AutoencoderMixin.enable_slicing"

PASS = Pass(
    name="vae_slicing",
    family=Family.MEMORY,
    stage=Stage.OFFLOAD,
    fidelity=Fidelity.EXACT,
    source=_SOURCE,
    owns=("vae.slices",),
    needs=(Need(_several, _SOURCE), Need(_slices, _SOURCE)),
    effect=effect,
    apply=apply,
    observe=observe,
    batch_invariant=True,
)
