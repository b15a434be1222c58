"""What a work adds up to: by phase, kind and module group, in the units that people publish.

Published counts take products of matrices alone, so totals here do too; what normalisation and
elementwise operations add stands beside them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from planner.case.work import Operation, Phase, Work
from planner.catalog.entry import Entry, Shape
from planner.prediction.meta import branches_of

PRODUCTS = ("linear", "attention", "convolution")
"""The kinds whose operations published counts mean."""

TERA = 1e12
_INDEX = re.compile(r"\.\d+(?=\.|$)")


def products(phases: Iterable[Phase]) -> float:
    """Return the TFLOPs of matrix products, attention and convolutions in all calls of phases."""
    return sum(
        phase.calls * op.flops * op.share / TERA
        for phase in phases for op in phase.operations if op.kind in PRODUCTS
    )  # fmt: skip


def summary(entry: Entry, shape: Shape, work: Work) -> dict[str, Any]:
    """Return the totals and tables of `planner trace`.

    A forward is one branch of one step for the whole batch, also where both branches run as one
    call of the denoiser.
    """
    named = {name: [p for p in work.phases if p.name == name]
             for name in ("encode", "denoise", "decode")}  # fmt: skip
    total, forwards = products(named["denoise"]), shape.steps * branches_of(entry, shape)
    return {
        "model": entry.id,
        "title": entry.title,
        "dtype": entry.dtype,
        "guidance": entry.guidance,
        "shape": shape.model_dump(),
        "total_tflops": total,
        "forwards": forwards,
        "denoiser_calls": work.forwards,
        "tflops_per_forward": total / forwards,
        "encode_tflops": products(named["encode"]),
        "decode_tflops": products(named["decode"]),
        "attention_share": attention(named["denoise"]) / total,
        "parameters": {part.name: int(part.parameters) for part in work.parts},
        "weight_bytes": {part.name: int(part.bytes) for part in work.parts},
        "peak_activation_bytes": max(phase.peak for phase in work.phases),
        "phases": [phase_table(phase) for phase in work.phases],
    }


def attention(phases: Iterable[Phase]) -> float:
    """Return the TFLOPs of attention in all calls of phases."""
    return sum(
        phase.calls * op.flops * op.share / TERA
        for phase in phases for op in phase.operations if op.kind == "attention"
    )  # fmt: skip


def phase_table(phase: Phase) -> dict[str, Any]:
    """Return one call of a phase by kind and by module group."""
    return {
        "name": phase.name,
        "branch": phase.branch,
        "calls": phase.calls,
        **_row(phase.operations),
        "peak_bytes": phase.peak,
        "kinds": _grouped(phase.operations, lambda op: op.kind),
        "groups": _grouped(phase.operations, lambda op: group_of(op.path)),
    }


def group_of(path: str) -> str:
    """Return a module's group: the same for all blocks of a list."""
    return _INDEX.sub(".*", path) or "(top level)"


def _grouped(operations: Iterable[Operation], key: Callable[[Operation], str]) -> dict[str, Any]:
    groups: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        groups[key(operation)].append(operation)
    return {name: _row(members) for name, members in groups.items()}


def _row(operations: Iterable[Operation]) -> dict[str, float]:
    """Return what operations add up to in one call."""
    members = list(operations)
    return {
        "tflops": sum(op.flops for op in members if op.kind in PRODUCTS) / TERA,
        "other_tflops": sum(op.flops for op in members if op.kind not in PRODUCTS) / TERA,
        "bytes": sum(op.bytes for op in members),
        "weight_bytes": sum(op.weights for op in members),
        "launches": sum(op.launches for op in members),
    }
