"""What a narrower number format does to the work of linear layers: the twin of `hooks.linear`.

An operation sums the layers of a module. Its parameters, tokens and rows are read back from its
floating-point operations and bytes; inputs and outputs count as equally wide, which is exact for
a module as a whole wherever what one layer widens another narrows. Biases count as weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from planner.case.work import Operation, Phase, Work
from planner.hooks.linear import Choice, in_scope

WIDE = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one value in the formats that a layer is quantized from."""


class Format(NamedTuple):
    """A format for weights and activations, whose activation scales are found at every call.

    `value` is the bytes of one value with its share of block scales, `row` those of the scale of
    one output channel. Finding scales and casting takes `kernels` launches a layer, which move
    `traffic` bytes for each value of the input; none of it is counted as floating-point work.
    """

    dtype: str
    value: float
    row: float = 0.0
    kernels: int = 1
    traffic: float | None = None


class Shape(NamedTuple):
    """The linear layers that an operation sums: bytes a value, values, tokens and output rows."""

    wide: int
    parameters: float
    inputs: float
    rows: float


def shape(op: Operation) -> Shape:
    """Return what the layers of a linear operation with known weights look like together."""
    wide = WIDE[op.dtype]
    parameters = op.weights / wide
    inputs = (op.bytes - op.weights) / wide / 2
    tokens = op.flops / (2 * parameters)
    return Shape(wide, parameters, inputs, inputs / tokens if tokens else 0.0)


def dynamic(op: Operation, new: Format) -> tuple[Operation, ...]:
    """Return a linear operation in a new format, after one quantization of its input a layer.

    Where the weights' share of the bytes is not known, all bytes shrink.
    """
    if op.weights <= 0:
        bytes = op.bytes * new.value / WIDE[op.dtype]
        return (op.model_copy(update={"dtype": new.dtype, "bytes": bytes}),)
    of = shape(op)
    weights = of.parameters * new.value + of.rows * new.row
    traffic = of.wide + new.value if new.traffic is None else new.traffic
    cast = beside(op, traffic * of.inputs, new.kernels)
    moved = of.inputs * (new.value + of.wide)
    changed = {"dtype": new.dtype, "bytes": weights + moved, "weights": weights}
    return (*cast, op.model_copy(update=changed))


def beside(
    op: Operation, bytes: float, kernels: int, weights: float = 0.0
) -> tuple[Operation, ...]:
    """Return element-wise work in the same module, one operation for each of its layers.

    It moves `bytes` in all and counts no floating-point operations. Compiled, the kernels of one
    layer become one, so that layers are not summed here.
    """
    each = op.model_copy(update={
        "kind": "elementwise", "flops": 0.0, "bytes": bytes / op.launches, "launches": kernels,
        "weights": weights / op.launches,
    })  # fmt: skip
    return (each,) * op.launches


def quantized(
    work: Work, choice: Choice, change: Callable[[Operation], tuple[Operation, ...]],
    both: bool = False,
) -> Work:  # fmt: skip
    """Return the work with `change` for every linear operation in scope, and smaller weights.

    `both` says that the own weights stay beside the new ones, so that the component grows.
    """
    phases = tuple(_changed(phase, choice, change) for phase in work.phases)
    before = max((_weights(phase) for phase in work.phases), default=0.0)
    after = max((_weights(phase) for phase in phases), default=0.0)
    touched = max((_touched(phase, choice) for phase in work.phases), default=0.0)
    growth = after - before + (touched if both else 0.0)
    parts = tuple(
        part.model_copy(update={"bytes": max(0.0, part.bytes + growth)})
        if part.phase == "denoise" else part
        for part in work.parts
    )  # fmt: skip
    return work.model_copy(update={"phases": phases, "parts": parts})


def _changed(
    phase: Phase, choice: Choice, change: Callable[[Operation], tuple[Operation, ...]]
) -> Phase:
    scope = _scope(phase, choice)
    new = tuple(n for op in phase.operations for n in (change(op) if scope(op) else (op,)))
    return phase.model_copy(update={"operations": new})


def _touched(phase: Phase, choice: Choice) -> float:
    scope = _scope(phase, choice)
    return sum(op.weights for op in phase.operations if scope(op))


def _weights(phase: Phase) -> float:
    """Return the bytes of the denoiser's weights that one of its forwards reads."""
    return sum(op.weights for op in phase.operations) if phase.name == "denoise" else 0.0


def _scope(phase: Phase, choice: Choice) -> Callable[[Operation], bool]:
    """Return which of a phase's operations are linear layers in scope."""
    places = list(dict.fromkeys(_split(op.path)[0] for op in phase.operations if op.block))
    kept = set(places[choice.edges : len(places) - choice.edges])

    def chosen(op: Operation) -> bool:
        place, path = _split(op.path)
        linear = op.kind == "linear" and op.block and op.dtype in WIDE
        return linear and place in kept and in_scope(path, choice.scope)

    return chosen if phase.name == "denoise" else lambda op: False


def _split(path: str) -> tuple[str, str]:
    """Return block's path and path inside the block of transformer_blocks.3.attn."""
    parts = path.split(".")
    return ".".join(parts[:2]), ".".join(parts[2:])
