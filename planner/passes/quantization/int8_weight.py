"""INT8 weights on the denoiser's linear layers, activations as they were.

What it does: stores the weights of the blocks' linear layers as 8-bit integers, one scale an output
channel, and converts them back at every call. Embedders, adaptive norms and the final projection
keep their precision.
When it helps: a model that does not fit otherwise: half the memory of what is quantized, with the
least error of all formats (.004 to .005 of a layer's output).
What it costs: time. Every call converts every weight, and image transformers are bound by
computation, which stays in the old precision. The own weights wait in the host's memory, so that
the pass can be taken off.
When not: memory is no question; on a CPU, where both copies would lie in the same memory. Library
modelopt stores the same integers in its compressed layers (mtq.compress) and, having no INT8
kernel, converts them back just so: no faster, no smaller, seconds of import. It is for those who
compare with what they export from it.
Source: torchao Int8WeightOnlyConfig; modelopt INT8_WEIGHT_ONLY_CFG and mtq.compress.
"""

from __future__ import annotations

import warnings
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from typing import Any, Literal

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.case.work import Operation, Work
from planner.case.workload import Workload
from planner.hooks.formats import beside, quantized, shape
from planner.hooks.linear import layers, none_quantized, swap_modules, swap_weights, torchao_weight
from planner.passes.base import (
    Context,
    Family,
    Fidelity,
    Need,
    Pass,
    Scope,
    Settings,
    Stage,
    Statistics,
    Undo,
    edges_knob,
    knob,
    scope_knob,
)
from planner.passes.needs import block_list, fused_adapters

ROW = 5
"""Bytes an output channel takes beside its integers: a float32 scale, an int8 zero point."""

_SAID = (
    "`torch.jit.script",  # on import
    "Accessing the 'model_",  # its configurations ask instances of pydantic for their fields
    "transformers .* is not tested with",  # on import; transformers plays no part here
    "Real quantization has been applied",  # nobody converts these layers back
)
"""What modelopt warns of, and why it does not matter here."""


class Int8WeightSettings(Settings):
    """Which layers, and whose."""

    scope: Scope = scope_knob()
    edges: int = edges_knob(high=2)
    library: Literal["torchao", "modelopt"] = knob(
        "torchao", "whose layers store and convert the weights"
    )


def apply(pipeline: Any, settings: Int8WeightSettings, context: Context) -> Undo:
    """Give every layer in scope an INT8 weight that is converted back at every call."""
    found, excluded = layers(pipeline, settings)
    if settings.library == "modelopt":
        undo = swap_modules(pipeline, found, _modelopt)
    else:
        undo = swap_weights(found, partial(torchao_weight, _config()))
    context.statistics.update(
        layers=len(found), excluded=len(excluded), library=settings.library
    )
    return undo


def _config() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    # Its inductor flags are the whole process's: undo could not take them back.
    return Int8WeightOnlyConfig(set_inductor_config=False)


def _modelopt(layer: Any) -> Any:
    """Return modelopt's compressed layer for a linear one, with the same bias."""
    import torch

    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        for said in _SAID:
            warnings.filterwarnings("ignore", message=said)
        import modelopt.torch.quantization as mtq

        copy = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        copy.weight = torch.nn.Parameter(layer.weight.detach(), requires_grad=False)
        copy.bias = layer.bias
        holder = torch.nn.Sequential(copy)
        mtq.quantize(holder, mtq.INT8_WEIGHT_ONLY_CFG)
        mtq.compress(holder)
    return holder[0]


def effect(work: Work, settings: Int8WeightSettings, telemetry: Telemetry | None) -> Work:
    """Shrink the weights in scope, and add what it takes to convert them at every call."""
    return quantized(work, settings, _converted)


def _converted(op: Operation) -> tuple[Operation, ...]:
    """Return the conversion of the weights, the product as it was, then scale and bias.

    The product reads a temporary copy of the weights, which are the conversion's.
    """
    if op.weights <= 0:
        return (op,)
    of = shape(op)
    stored = of.parameters + of.rows * ROW
    convert = beside(op, stored + of.parameters * of.wide, 1, weights=stored)
    rescale = beside(op, 4 * of.inputs * of.wide, 2)
    return (*convert, op.model_copy(update={"weights": 0.0}), *rescale)


def observe(
    settings: Int8WeightSettings, statistics: Statistics, workload: Workload
) -> str | None:
    """Answer a sentence if no layer was quantized."""
    return none_quantized("int8_weight", settings, statistics.get("layers"))


def _memory_of_its_own(case: Case) -> str | None:
    if case.device.kind != "cpu":
        return None
    return "int8_weight needs a device with memory of its own; a cpu would hold both copies"


PASS = Pass(
    name="int8_weight",
    family=Family.QUANTIZATION,
    stage=Stage.QUANTIZE,
    fidelity=Fidelity.APPROXIMATE,
    source="torchao Int8WeightOnlyConfig; modelopt INT8_WEIGHT_ONLY_CFG",
    settings=Int8WeightSettings,
    owns=("denoiser.linear_precision",),
    needs=(
        Need(_memory_of_its_own, "the own weights wait in the host's memory for the undo"),
        fused_adapters("int8_weight"),
        block_list("int8_weight"),
    ),
    imports=("torchao>=0.17",),
    effect=effect,
    apply=apply,
    observe=observe,
    batch_invariant=True,
)
