"""Turns a published measurement into the work that was measured, or says why it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from planner.case.noun import Scalar
from planner.case.work import Operation, Part, Work
from planner.catalog.devices import Card, card
from planner.catalog.reader import entry, published_as
from planner.errors import PlannerError
from planner.passes import registry
from planner.prediction.meta import rounded_shape, shape_of, work_of
from planner.prediction.published import Row

SKIPS = (
    "unknown model", "unknown device", "no size or time", "several GPUs", "sparse attention",
    "attention not stated", "precision without a pass", "cache without an anchor",
    "offload not stated", "the model refuses the size", "the device lacks the precision",
)  # fmt: skip
"""Every reason for which a row is not predicted."""

_HALF = {"fp16": "float16", "bf16": "bfloat16", "bf16/fp16": "bfloat16", "fp16+bf16": "bfloat16",
         "bf16+fp32": "bfloat16"}  # fmt: skip
_TECHNIQUES: dict[str, tuple[str, dict[str, Any]]] = {
    "fp8": ("fp8_dynamic", {"granularity": "per_tensor"}),
    "fp8 rowwise": ("fp8_dynamic", {"granularity": "per_row"}),
    "fp8/mixed (S)": ("fp8_dynamic", {"granularity": "per_tensor"}),
    "int8": ("int8_dynamic", {}),
    "int8 weight-only": ("int8_weight", {}), "int8 torchao wo": ("int8_weight", {}),
    "int8 quanto": ("int8_weight", {}), "int8 bnb": ("int8_weight", {}),
    "fp8 weight-only": ("fp8_storage", {}), "fp8 torchao wo": ("fp8_storage", {}),
    "fp8 quanto": ("fp8_storage", {}), "fp8 layerwise cast": ("fp8_storage", {}),
    "nvfp4 svdq r32": ("nvfp4", {}), "fp4_e2m1": ("nvfp4", {}), "nvfp4": ("nvfp4", {}),
}  # fmt: skip
_OFFLOADS: dict[str, tuple[str, dict[str, Any]]] = {
    "model-cpu": ("model_offload", {}), "offload_model": ("model_offload", {}),
    "offload_model+t5_cpu": ("model_offload", {}),
    "offload_model+convert_model_dtype": ("model_offload", {}),
    "offload_model+convert_model_dtype+t5_cpu": ("model_offload", {}),
    "cpu offload": ("model_offload", {}), "offload": ("model_offload", {}),
    "block offload": ("group_offload", {"level": "block"}),
    "group-offload leaf": ("group_offload", {"level": "leaf"}),
    "sequential": ("group_offload", {"level": "leaf"}),
}  # fmt: skip


_HEAD = 64
"""Width of an attention head in the models of the time before fused attention."""


class Skipped(Exception):
    """Says why a row is not predicted: one of SKIPS, and what in the row makes it so."""

    def __init__(self, reason: str, value: str) -> None:
        """Take the reason and the value that it concerns."""
        super().__init__(f"{reason} ({value})")
        self.reason = reason


class Sample(NamedTuple):
    """A published row with the work that it measured and the device."""

    row: Row
    card: Card
    work: Work


def sample(row: Row) -> Sample:
    """Return the work of a row on its device. Raises `Skipped`."""
    model_id, device = _known(row)
    _refuse(row, device)
    work = _in(row, _scoped(row, _traced(row, model_id)))
    for name, values in _techniques(row):
        work = registry.get(name).effect(work, registry.settings_of(name, values), None)
    _refuse_units(row, device, work)
    if "sgl-project/sglang" in row.source:
        work = _encoders(work, lambda part: {"place": "streamed", "window": part.bytes / 20})
    if row.precision in _TECHNIQUES and ("text encoder" in row.note or "T5 quant" in row.note):
        work = _encoders(work, lambda part: {"bytes": part.bytes / 2})
    return Sample(row, device, work)


def _encoders(work: Work, change: Callable[[Part], dict[str, Any]]) -> Work:
    """Change how encoders lie: SGLang streams their layers, some rows quantize them."""
    parts = (
        part.model_copy(update=change(part)) if part.phase == "encode" else part
        for part in work.parts
    )  # fmt: skip
    return work.model_copy(update={"parts": tuple(parts)})


def _refuse_units(row: Row, device: Card, work: Work) -> None:
    """Raise where the device has no unit for what the row multiplied."""
    types = {op.dtype for phase in work.phases for op in phase.operations if op.kind == "linear"}
    for unit in ("float8", "float4", "int8"):
        if any(name.startswith(unit) for name in types) and not getattr(device.peaks, unit):
            raise Skipped("the device lacks the precision", f"{row.precision} on {device.id}")


def is_known(row: Row) -> bool:
    """Tell whether the catalogue knows a row's model and device."""
    try:
        _known(row)
    except Skipped:
        return False
    return True


def _known(row: Row) -> tuple[str, Card]:
    """Return the model and the device that a row names. Raises `Skipped`."""
    model_id = published_as(row.model)
    if model_id is None:
        raise Skipped("unknown model", row.model)
    try:
        return model_id, card(row.gpu)
    except PlannerError as error:
        raise Skipped("unknown device", row.gpu or "none") from error


def _refuse(row: Row, device: Card) -> None:
    """Raise for what no work of one device can say."""
    if row.gpus > 1:
        raise Skipped("several GPUs", str(row.gpus))
    if not (row.height and row.width and row.steps and (row.seconds or row.memory)):
        raise Skipped("no size or time", row.id)
    if row.kernel in ("sparse", "unknown"):
        reason = "sparse attention" if row.kernel == "sparse" else "attention not stated"
        raise Skipped(reason, row.id)
    if row.precision not in _HALF and row.precision not in _TECHNIQUES:
        raise Skipped("precision without a pass", row.precision)
    if row.offload != "none" and row.offload not in _OFFLOADS:
        raise Skipped("offload not stated", row.offload)
    if row.precision == "bf16" and not device.peaks.bfloat16:
        raise Skipped("the device lacks the precision", f"bf16 on {device.id}")


def _techniques(row: Row) -> list[tuple[str, dict[str, Any]]]:
    """Return the passes, with settings, that say what the row did."""
    found = [_TECHNIQUES[row.precision]] if row.precision in _TECHNIQUES else []
    if row.offload in _OFFLOADS:
        found.append(_OFFLOADS[row.offload])
    # Compilers, engines and Nunchaku's kernels (svdq) fuse what stands beside the products.
    if row.stack in ("compiled", "engine") or "svdq" in row.precision:
        found.append(("compile_blocks", {}))
    return found


def _sizes(row: Row, model_id: str) -> dict[str, Scalar]:
    """Return the row's workload; rows of one branch have no guidance."""
    sizes: dict[str, Scalar] = {
        "height": row.height, "width": row.width, "frames": row.frames, "steps": row.steps,
        "batch": row.batch,
    }  # fmt: skip
    if row.forwards == 1 and entry(model_id).guidance in ("batched", "sequential"):
        sizes["guidance"] = 1.0
    return sizes


def _traced(row: Row, model_id: str) -> Work:
    dtype = _HALF.get(row.precision, "bfloat16")
    model = entry(model_id)
    if dtype == "bfloat16":
        # Pipelines decode in float32 only where float16 would overflow.
        parts = [part.model_copy(update={"dtype": None}) if part.phase == "decode" else part
                 for part in model.components]  # fmt: skip
        model = model.model_copy(update={"components": tuple(parts)})
    try:
        shape = rounded_shape(model, shape_of(model, **_sizes(row, model_id)))
        return work_of(model, dtype, **shape.model_dump())
    except PlannerError as error:
        raise Skipped("the model refuses the size", str(error)) from error


def _scoped(row: Row, work: Work) -> Work:
    """Keep what the row's clock saw."""
    wanted = {"vae_decode": ("decode",), "pipeline": ("encode", "denoise", "decode")}
    names = wanted.get(row.scope, ("denoise",))
    alone = row.scope == "transformer"  # a benchmark of the bare model loads nothing else
    return work.model_copy(update={
        "phases": tuple(p for p in work.phases if p.name in names),
        "parts": tuple(p for p in work.parts if p.phase in names or not alone),
    })  # fmt: skip


def _in(row: Row, work: Work) -> Work:
    """Give attention the row's kernel; without a fused one the scores cross memory four times."""

    def chosen(op: Operation) -> Operation:
        if op.kind != "attention":
            return op
        scores = op.flops / (4 * _HEAD) if row.kernel == "math" else 0.0
        return op.model_copy(update={"kernel": row.kernel, "bytes": op.bytes + 4 * 2 * scores})

    return work.mapped(lambda phase: phase.mapped(chosen))
