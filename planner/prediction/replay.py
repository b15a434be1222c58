"""Turns a published measurement into the work that was measured, or says why it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from planner.case.noun import Scalar
from planner.case.work import Operation, Phase, Work
from planner.catalog.devices import Card, card
from planner.catalog.reader import entry, published_as
from planner.errors import PlannerError
from planner.passes import registry
from planner.prediction.meta import work_of
from planner.prediction.published import Row

SKIPS = (
    "unknown model", "unknown device", "no size or time", "several GPUs", "sparse attention",
    "attention not stated", "precision without a pass", "cache without a pass",
    "offload not stated", "the model refuses the size", "the device lacks the precision",
)  # fmt: skip
"""Every reason for which a row is not predicted."""

_HALF = {"fp16": "float16", "bf16": "bfloat16", "bf16/fp16": "bfloat16", "fp16+bf16": "bfloat16",
         "bf16+fp32": "bfloat16"}  # fmt: skip
_TECHNIQUES: dict[str, tuple[str, dict[str, Any]]] = {
    "fp8": ("fp8_dynamic", {"granularity": "tensor"}),
    "fp8 rowwise": ("fp8_dynamic", {"granularity": "row"}),
    "fp8/mixed (S)": ("fp8_dynamic", {"granularity": "tensor"}),
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
    model_id = published_as(row.model)
    if model_id is None:
        raise Skipped("unknown model", row.model)
    try:
        device = card(row.gpu)
    except PlannerError as error:
        raise Skipped("unknown device", row.gpu or "none") from error
    _refuse(row, device)
    work = _in(row, _scoped(row, _traced(row, model_id)))
    techniques = _techniques(row) + ([] if row.stack in ("eager", "old") else [("compile_blocks", {})])
    for name, values in techniques:
        work = registry.get(name).effect(work, registry.settings_of(name, values), None)
    return Sample(row, device, work)


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
    if row.cache != "none":
        raise Skipped("cache without a pass", row.cache)
    if row.offload != "none" and row.offload not in _OFFLOADS:
        raise Skipped("offload not stated", row.offload)
    if row.precision == "bf16" and not device.peaks.bfloat16:
        raise Skipped("the device lacks the precision", f"bf16 on {device.id}")


def _techniques(row: Row) -> list[tuple[str, dict[str, Any]]]:
    found = [_TECHNIQUES[row.precision]] if row.precision in _TECHNIQUES else []
    return found + ([_OFFLOADS[row.offload]] if row.offload in _OFFLOADS else [])


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
    try:
        return work_of(model_id, _HALF.get(row.precision, "bfloat16"), **_sizes(row, model_id))
    except PlannerError as error:
        raise Skipped("the model refuses the size", str(error)) from error


def _scoped(row: Row, work: Work) -> Work:
    """Keep what the row's clock saw."""
    wanted = {"vae_decode": ("decode",), "pipeline": ("encode", "denoise", "decode")}
    names = wanted.get(row.scope, ("denoise",))
    return work.model_copy(update={"phases": tuple(p for p in work.phases if p.name in names)})


def _in(row: Row, work: Work) -> Work:
    """Give attention the row's kernel."""

    def chosen(op: Operation) -> Operation:
        return op.model_copy(update={"kernel": row.kernel}) if op.kind == "attention" else op

    return work.mapped(_each(chosen))


def _each(change: Callable[[Operation], Operation]) -> Callable[[Phase], Phase]:
    def changed(phase: Phase) -> Phase:
        return phase.model_copy(update={"operations": tuple(map(change, phase.operations))})

    return changed
