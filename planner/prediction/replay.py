"""Turns a published measurement into the work that was measured, or says why it cannot."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from planner.case.noun import Scalar
from planner.case.work import Operation, Work
from planner.catalog.devices import Card, card
from planner.catalog.reader import entry, published_as
from planner.errors import PlannerError
from planner.passes import registry
from planner.prediction.meta import rounded_shape, shape_of, work_of
from planner.prediction.protocols import adapted
from planner.prediction.published import Row

SKIPS = (
    "unknown model", "unknown device", "no size or time", "several GPUs", "attention not stated",
    "precision without a pass", "cache without an anchor", "the model refuses the size",
    "the device lacks the precision",
)  # fmt: skip
"""Every reason for which a row is not predicted."""

_WIDE = {"fp16": "float16", "bf16": "bfloat16", "bf16/fp16": "bfloat16", "fp16+bf16": "bfloat16",
         "bf16+fp32": "bfloat16", "fp32": "float32", "fp32/tf32": "float32"}  # fmt: skip
_TECHNIQUES: dict[str, tuple[str, dict[str, Any]]] = {
    "fp8": ("fp8_dynamic", {"granularity": "per_tensor"}),
    "fp8 rowwise": ("fp8_dynamic", {"granularity": "per_row"}),
    "fp8/mixed (S)": ("fp8_dynamic", {"granularity": "per_tensor"}),
    "fp8 scaled": ("fp8_dynamic", {"granularity": "per_tensor"}),
    "int8": ("int8_dynamic", {}), "int8 convrot": ("int8_dynamic", {}),
    "nvfp4 svdq r32": ("nvfp4", {}), "nvfp4 svdq": ("nvfp4", {}), "fp4_e2m1": ("nvfp4", {}),
    "nvfp4": ("nvfp4", {}), "fp4": ("nvfp4", {}),
}  # fmt: skip
_CONVERTED = {
    r"^fp8 ": 8, r"^int8 ": 8, r"^fp6": 6, r"^int4 ": 4.5, r"^nf4 ": 4.5, r"^autoquant": 8,
    r"Q8_0$": 8.5, r"Q6_K$": 6.6, r"Q5_": 5.5, r"Q4_1$": 5, r"Q4_": 4.5, r"Q3_": 3.4,
    r"Q2_[kK]$": 2.6,
}  # fmt: skip
"""Bits a weight of formats that are converted back before the product, scales included.

Source: block layouts of ggml-common.h; bitsandbytes' NF4 with an absmax for 64 weights; torchao's
int4 in groups of 128 to 32. torchao's autoquant chooses INT8 or none for each layer.
"""
_NO_KERNEL = ("W4A4", "svdq int4", "int4 svdq", "gptq", "naive")
"""What multiplies integers of four bits: no unit of the catalogue does."""


_HEAD = 64
"""Width of an attention head in the models of the time before fused attention."""


class Skipped(Exception):
    """Says why a row is not predicted: one of SKIPS, and what in the row makes it so."""

    def __init__(self, reason: str, value: str) -> None:
        """Take the reason and the value that it concerns."""
        super().__init__(f"{reason} ({value})")
        self.reason = reason


class Sample(NamedTuple):
    """A published row with the work that it measured and the device.

    `loaded` is the bytes of the weights before anything was quantized.
    """

    row: Row
    card: Card
    work: Work
    loaded: float


def sample(row: Row) -> Sample:
    """Return the work of a row on its device. Raises `Skipped`."""
    model_id, device = _known(row)
    _refuse(row, device)
    before = work = _in(row, _scoped(row, _traced(row, model_id)))
    for name, values in _techniques(row):
        work = registry.get(name).effect(work, registry.settings_of(name, values), None)
    _refuse_units(row, device, work)
    work = adapted(row, _narrowed(row, work), entry(model_id), before)
    loaded = adapted(row, before, entry(model_id), before.model_copy(update={"parts": ()}))
    return Sample(row, device, work, sum(part.bytes for part in loaded.parts))


def _narrowed(row: Row, work: Work) -> Work:
    """Give weights that are converted at every call the bits of the row's format."""
    bits = converted_bits(row.precision)
    if bits in (None, 8):
        return work
    parts = tuple(
        part.model_copy(update={"bytes": part.bytes * (bits or 8) / 8})
        if part.phase == "denoise" else part for part in work.parts
    )  # fmt: skip
    return work.model_copy(update={"parts": parts})


def converted_bits(precision: str) -> float | None:
    """Return the bits a weight of a format that only stores; None for any other."""
    if precision in _TECHNIQUES or any(name in precision for name in _NO_KERNEL):
        return None
    return next((bits for like, bits in _CONVERTED.items() if re.search(like, precision)), None)


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
    if row.kernel == "unknown":
        raise Skipped("attention not stated", row.id)
    narrow = row.precision in _TECHNIQUES or converted_bits(row.precision)
    if row.precision not in _WIDE and not narrow:
        raise Skipped("precision without a pass", row.precision)
    if row.precision == "bf16" and not device.peaks.bfloat16:
        raise Skipped("the device lacks the precision", f"bf16 on {device.id}")


def _techniques(row: Row) -> list[tuple[str, dict[str, Any]]]:
    """Return the passes, with settings, that say what the row did."""
    found = [_TECHNIQUES[row.precision]] if row.precision in _TECHNIQUES else []
    if converted_bits(row.precision):
        stored = "fp8_storage" if row.precision.startswith("fp8") else "int8_weight"
        found.append((stored, {}))
    found += _offload(row.offload)
    # Compilers, engines and Nunchaku's kernels (svdq) fuse what stands beside the products.
    if row.stack in ("compiled", "engine") or "svdq" in row.precision:
        found.append(("compile_blocks", {}))
    return found


def _offload(label: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the pass that says what a label of offloading does.

    A denoiser that is offloaded as needed, because it does not fit, comes in block by block; a
    label that names no more than offloading means diffusers' usual one, by components.
    """
    if label in ("none", "n"):
        return []
    if "sequential" in label or "leaf" in label:
        return [("group_offload", {"level": "leaf"})]
    if "block" in label or "group" in label or "as needed" in label:
        return [("group_offload", {"level": "block"})]
    return [("model_offload", {})]


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
    dtype = _WIDE.get(row.precision, "bfloat16")
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
