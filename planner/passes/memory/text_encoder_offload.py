"""Rest the text encoders on the host, and move them in for encoding only.

What it does: each text encoder comes to the device for its forward, as a whole or layer by layer,
and leaves it right after; the copy on the host stays, so that leaving costs nothing.
When it helps: large encoders beside a streamed denoiser, or before activations that are larger than
they are (video, high resolutions): T5-XXL takes 9.5 GB in 16 bits, and rests during all of it.
Layer by layer, where an encoder is larger than the device: FLUX.2's takes 48 GB.
What it costs: the encoders cross the link at every prompt; as much pinned memory on the host.
When not: the peak is while encoding, when a resident denoiser is in memory too: let components take
turns instead. Short calls with large encoders, where the link would take longest.
Source: diffusers' apply_group_offloading, with the whole encoder or each layer as one group;
ComfyUI moves text encoders out in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.case.work import Part, Phase, Work
from planner.case.workload import Workload
from planner.hooks.residence import grouped, text_encoders_of
from planner.passes.base import (
    Context,
    Family,
    Fidelity,
    Need,
    Pass,
    Settings,
    Stage,
    Statistics,
    Undo,
    knob,
)
from planner.passes.needs import on_cuda

_ALL = 1_000_000
"""More blocks in a group than any encoder has: it moves as a whole."""


class TextEncoderOffloadSettings(Settings):
    """How much of an encoder moves at once."""

    level: Literal["whole", "leaf"] = knob(
        "whole", "what moves as one: an encoder, or single layers", choices=("leaf", "whole")
    )


def apply(pipeline: Any, settings: TextEncoderOffloadSettings, context: Context) -> Undo:
    """Group every text encoder; a group leaves by going back to its copy on the host."""
    from diffusers.hooks import apply_group_offloading

    how: dict[str, Any] = {"offload_type": "leaf_level"}
    if settings.level == "whole":
        how = {"num_blocks_per_group": _ALL}

    def as_one(model: Any, device: Any) -> None:
        copies = _copies(model, device)
        apply_group_offloading(model, onload_device=device, **how)
        for group in _groups(model):
            _keep_on_host(group, copies)

    models = text_encoders_of(pipeline).values()
    undo = grouped(models, as_one, context.device)
    context.statistics.update(encoders=len(models))
    return undo


def _tensors(module: Any) -> Iterable[Any]:
    return (*module.parameters(), *module.buffers())


def _copies(model: Any, device: Any) -> dict[Any, Any]:
    """Return every tensor's copy on the host; where a CPU computes it is the tensor itself."""
    pinned = device.type == "cuda"
    return {
        tensor: tensor.data.cpu().pin_memory() if pinned or tensor.is_cuda else tensor.data
        for tensor in _tensors(model)
    }


def _groups(model: Any) -> list[Any]:
    registries = (vars(module).get("_diffusers_hook") for module in model.modules())
    hooks = (one.get_hook("group_offloading") for one in registries if one is not None)
    return list({id(hook.group): hook.group for hook in hooks if hook is not None}.values())


def _keep_on_host(group: Any, copies: dict[Any, Any]) -> None:
    """Let a group leave without a transfer: diffusers would copy it back each time."""
    held = [tensor for module in group.modules for tensor in _tensors(module)]
    held += [*group.parameters, *group.buffers]

    def offload() -> None:
        for tensor in held:
            tensor.data = copies[tensor]

    group.offload_ = offload
    offload()


def effect(work: Work, settings: TextEncoderOffloadSettings, telemetry: Telemetry | None) -> Work:
    """Rest the encoders on the host; every encoding brings them in, none brings them back."""
    resting = [sum(part.bytes for part in work.parts if _moves(part))]

    def moved(phase: Phase) -> Phase:
        if phase.name != "encode" or not resting:
            return phase
        crossed = resting.pop() * phase.calls  # a second such phase encodes a picture
        return phase.model_copy(update={"transfers": phase.transfers + crossed})

    def part_of(part: Part) -> Part:
        if not _moves(part):
            return part
        if settings.level == "whole":
            return part.model_copy(update={"place": "host"})
        return part.model_copy(update={"place": "streamed", "window": _window(part, work)})

    changed = work.mapped(moved)
    return changed.model_copy(update={"parts": tuple(map(part_of, work.parts))})


def _window(part: Part, work: Work) -> float:
    """Return the most bytes of an encoder that are on the device at once, layer by layer.

    Operations sum the layers of a block. What no operation reads whole, such as the embeddings,
    counts as one layer: that is too much rather than too little.
    """
    mine = [op for phase in work.phases if phase.name == "encode" for op in phase.operations
            if op.path.split(".")[0] == part.name]  # fmt: skip
    layer = max((op.weights / max(1, op.launches) for op in mine), default=0.0)
    rest = part.bytes - sum(op.weights for op in mine)
    return min(part.bytes, max(layer, rest))


def _moves(part: Part) -> bool:
    return part.name.startswith("text_encoder") and part.place == "device"


def observe(
    settings: TextEncoderOffloadSettings, statistics: Statistics, workload: Workload
) -> str | None:
    """Answer a sentence if there was no encoder to move."""
    if statistics.get("encoders"):
        return None
    return "text_encoder_offload found no text encoder"


def _says_something(case: Case) -> str | None:
    if any(name.startswith("text_encoder") for name in case.model.components):
        return None
    return f"text_encoder_offload needs a text encoder; {case.model.pipeline} has none"


_SOURCE = "diffusers hooks/group_offloading.py; T5-XXL is 4.76 billion parameters"

PASS = Pass(
    name="text_encoder_offload",
    family=Family.MEMORY,
    stage=Stage.OFFLOAD,
    fidelity=Fidelity.EXACT,
    source=_SOURCE,
    settings=TextEncoderOffloadSettings,
    owns=("text_encoder.place",),
    imports=("accelerate>=0.17",),
    needs=(
        on_cuda("text_encoder_offload", "moves weights from the host to a device"),
        Need(_says_something, _SOURCE),
    ),
    effect=effect,
    apply=apply,
    observe=observe,
    seeds=({"level": "whole"}, {"level": "leaf"}),
    batch_invariant=True,
)
