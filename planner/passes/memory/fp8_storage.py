"""Keep the denoiser's linear layers in 8 bits, and compute in the usual precision.

What it does: weights lie in float8_e4m3fn; each layer casts its own up before its forward and down
after it. Norms, position and patch embeddings, a first and last projection, and what the model
itself asks for stay as they are.
When it helps: a denoiser that is too large for the card in 16 bits: up to half the memory, and of
the transfers under offload. Qwen-Image's 40.9 GB become 20.4; FLUX.1's 23.8 GB become 15.1, since a
quarter of it is adaptive norms.
What it costs: two casts a layer and forward, unfused; a copy of the weights on the host, from
which they come back when the pass is taken off.
When not: memory is not short: it only ever costs time. On a CPU nothing is saved, for both copies
lie in the same memory. Adapters that are not fused would be cast too.
Source: diffusers' layerwise casting, enable_layerwise_casting. It has no way back of its own.

Rounding is to the nearest, without scales: three bits of mantissa, relative error up to 6 %.
"""

from __future__ import annotations

import re
from typing import Any

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.case.work import Operation, Part, Phase, Work
from planner.case.workload import Workload
from planner.hooks.blocks import denoisers_of
from planner.hooks.branches import drop_empty_registry
from planner.hooks.formats import WIDE
from planner.passes.base import (
    Avoid,
    Context,
    Family,
    Fidelity,
    Pass,
    Settings,
    Stage,
    Statistics,
    Undo,
    knob,
)
from planner.passes.needs import fused_adapters, on_cuda

HOOK = "layerwise_casting"
"""The name of diffusers' hook."""

SKIPPED = ("pos_embed", "patch_embed", "norm", "^proj_in$", "^proj_out$")
"""What diffusers leaves alone by default: `DEFAULT_SKIP_MODULES_PATTERN`."""


class Fp8StorageSettings(Settings):
    """What is left alone."""

    skip: str = knob("", "more layers left alone: regular expressions, separated by commas")

    @property
    def patterns(self) -> tuple[str, ...]:
        """Return every pattern of a path that is left alone."""
        return (*SKIPPED, *(one.strip() for one in self.skip.split(",") if one.strip()))


def apply(pipeline: Any, settings: Fp8StorageSettings, context: Context) -> Undo:
    """Cast every denoiser's layers down; the originals wait on the host."""
    import torch

    compute = getattr(torch, context.case.workload.dtype)
    models = list(denoisers_of(pipeline).values())
    kept: dict[Any, Any] = {}

    def undo() -> None:
        for model in models:
            _uncast(model)
        for weight, original in kept.items():
            weight.data = original.to(weight.device)
        kept.clear()

    try:
        for model in models:
            before = {weight: weight.data.to("cpu") for weight in model.parameters()}
            kept.update(before)
            model.enable_layerwise_casting(
                storage_dtype=torch.float8_e4m3fn, compute_dtype=compute,
                skip_modules_pattern=settings.patterns,
            )  # fmt: skip
            for weight in [one for one in before if one.dtype == before[one].dtype]:
                del kept[weight]
    except BaseException:
        undo()
        raise
    context.statistics.update(
        weights=len(kept), parameters=sum(weight.numel() for weight in kept)
    )
    return undo


def _uncast(model: Any) -> None:
    """Take the casting hooks off, which diffusers refuses to do: the originals are elsewhere."""
    for module in model.modules():
        registry = vars(module).get("_diffusers_hook")
        hook = None if registry is None else registry.get_hook(HOOK)
        if hook is not None:
            hook.deinitalize_hook = lambda module: module
            registry.remove_hook(HOOK, recurse=False)
            drop_empty_registry(module)


def effect(work: Work, settings: Fp8StorageSettings, telemetry: Telemetry | None) -> Work:
    """Store linear weights in a byte each; add the casts, which move bytes and compute nothing."""
    denoise = next((phase for phase in work.phases if phase.name == "denoise"), None)
    if denoise is None:
        return work
    saved = sum(_saved(op, settings) for op in denoise.operations)

    def phase_of(phase: Phase) -> Phase:
        if phase.name != "denoise":
            return phase
        stored = tuple(_stored(op, settings) for op in phase.operations)
        casts = tuple(_casts(op) for op in phase.operations if _saved(op, settings))
        return phase.model_copy(update={"operations": stored + casts})

    def part_of(part: Part) -> Part:
        if part.phase != "denoise":
            return part
        least = min(part.parameters, part.bytes)  # a byte each
        left = max(least, part.bytes - saved) if saved else least
        return part.model_copy(update={"bytes": left})

    changed = work.mapped(phase_of)
    return changed.model_copy(update={"parts": tuple(map(part_of, work.parts))})


def _saved(op: Operation, settings: Fp8StorageSettings) -> float:
    """Return the bytes that an operation's weights lose."""
    if op.kind not in ("linear", "convolution") or op.dtype not in WIDE:
        return 0.0
    if any(re.search(pattern, op.path) for pattern in settings.patterns):
        return 0.0
    return op.weights * (1 - 1 / WIDE[op.dtype])


def _stored(op: Operation, settings: Fp8StorageSettings) -> Operation:
    saved = _saved(op, settings)
    if not saved:
        return op
    return op.model_copy(update={"bytes": op.bytes - saved, "weights": op.weights - saved})


def _casts(op: Operation) -> Operation:
    """Return the casts around an operation: up, down, and the product's read of the wide copy."""
    wide = op.weights
    narrow = wide / WIDE[op.dtype]
    # Up: reads narrow, writes wide. Product: reads wide, of which narrow is in the operation.
    # Down: reads wide, writes narrow.
    moved = (narrow + wide) + (wide - narrow) + (wide + narrow)
    return op.model_copy(update={
        "kind": "elementwise", "flops": 0.0, "bytes": moved, "weights": 0.0, "launches": 2,
    })  # fmt: skip


def observe(settings: Fp8StorageSettings, statistics: Statistics, workload: Workload) -> str | None:
    """Answer a sentence if no weight was cast."""
    if statistics.get("weights"):
        return None
    return f"fp8_storage cast no weight; left alone is {', '.join(settings.patterns)}"


def unfit(case: Case, settings: Fp8StorageSettings) -> str | None:
    """Answer a sentence if a pattern cannot be read."""
    for pattern in settings.patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            return f"fp8_storage.skip holds {pattern!r}, which is no regular expression: {error}"
    return None


_SOURCE = "diffusers ModelMixin.enable_layerwise_casting; hooks/layerwise_casting.py"

PASS = Pass(
    name="fp8_storage",
    family=Family.MEMORY,
    stage=Stage.QUANTIZE,
    fidelity=Fidelity.APPROXIMATE,
    source=_SOURCE,
    settings=Fp8StorageSettings,
    owns=("denoiser.linear_precision",),
    needs=(
        on_cuda("fp8_storage", "the originals rest on the host: on a CPU nothing would be saved"),
        fused_adapters("fp8_storage")._replace(
            source="diffusers docs, layerwise casting: may fail with PEFT layers"
        ),
    ),
    avoids=(
        Avoid(
            "cuda_graphs",
            "every forward casts the weights into new memory, which a captured graph does not see",
            "diffusers LayerwiseCastingHook: module.to(dtype) before and after each forward",
        ),
        Avoid(
            "compile_blocks",
            "each layer's cast breaks the compiled block's graph: a tiny FLUX falls into 25 graphs",
            "torch 2.14.1 with diffusers 0.42.1: module.to makes a Parameter, which Dynamo leaves",
            "slower",
        ),
    ),
    effect=effect,
    apply=apply,
    observe=observe,
    unfit=unfit,
    batch_invariant=True,
)
