"""FP8 weights and activations on the denoiser's linear layers, scales found at every call.

What it does: stores the weights of the blocks' linear layers as E4M3 (largest value 448) and casts
their inputs to it at every call, so that the tensor cores multiply 8-bit floats. One scale a
tensor, or one a row: an output channel of the weights, a token of the activations. Embedders,
adaptive norms and the final projection keep their precision, as do layers whose widths are no
multiples of 16 and those with weights that are all zero, whose scale would be 0/0.
When it helps: large layers on Ada, Hopper and Blackwell, with compile: FLUX.1-dev 1.54 times on an
L20. Half the memory of what is quantized.
What it costs: two passes over every input, in nine kernels unless they are compiled. The own
weights wait in the host's memory, so that the pass can be taken off.
When not: without compile; models that attention dominates (no gain on HunyuanVideo); few-step and
video models under a strict distance, where trajectories part. modelopt is no second engine here:
after mtq.compress its FP8_DEFAULT_CFG runs the same torch._scaled_mm, but by activation scales from
a calibration; without compress it rounds and multiplies in the old precision.
Source: torchao Float8DynamicActivationFloat8WeightConfig (version 2, Float8Tensor).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.case.work import Work
from planner.case.workload import Workload
from planner.errors import UsageError
from planner.hooks.formats import Format, dynamic, quantized
from planner.hooks.linear import Layers, layers, none_quantized, swap_weights, torchao_weight
from planner.passes.base import (
    Context,
    Domain,
    Family,
    Fidelity,
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
from planner.passes.needs import block_list, compute_capability, fused_adapters

ALIGNED = 16
"""Both widths of a layer are multiples of it, or torchao leaves the layer as it is, unsaid."""

LEAST = 2.0**-14
"""Least amplitude that an activation's scale is found from, so that zeros do not become 0/0."""

FORMATS = {
    "per_tensor": Format("float8_e4m3fn", value=1, kernels=9, traffic=33),
    "per_row": Format("float8_e4m3fn", value=1, row=4, kernels=9, traffic=33),
}
"""What torchao's quantization of a 16-bit input launches and moves, counted where it runs."""


class Fp8DynamicSettings(Settings):
    """How fine the scales are, and which layers."""

    granularity: Literal["per_tensor", "per_row"] = knob(
        "per_tensor", "what shares a scale; per_row takes bfloat16 weights",
        choices=("per_row", "per_tensor"),
    )  # fmt: skip
    scope: Scope = scope_knob()
    edges: int = edges_knob(high=2)


def apply(pipeline: Any, settings: Fp8DynamicSettings, context: Context) -> Undo:
    """Give every layer in scope an FP8 weight that casts its input."""
    found, excluded = layers(pipeline, settings, partial(_fits, settings.granularity))
    if settings.granularity == "per_row":
        _refuse_other_than_bfloat16(found)
    undo = swap_weights(found, partial(torchao_weight, _config(settings.granularity)))
    context.statistics.update(layers=len(found), excluded=len(excluded))
    return undo


def _fits(granularity: str, layer: Any) -> bool:
    """Tell whether torchao quantizes a layer, and without a scale of zero."""
    largest = layer.weight.abs().amax(1)
    alive = bool((largest > 0).all() if granularity == "per_row" else (largest > 0).any())
    return layer.in_features % ALIGNED == layer.out_features % ALIGNED == 0 and alive


def _refuse_other_than_bfloat16(found: Layers) -> None:
    """Raise `UsageError` for what torchao would answer with an assertion."""
    import torch

    other = next((layer.weight.dtype for _, layer in found), torch.bfloat16)
    if other != torch.bfloat16:
        name = str(other).removeprefix("torch.")
        raise UsageError(
            f"fp8_dynamic cannot scale per row: the weights are {name}, not bfloat16",
            value="per_row",
            way_out="use granularity per_tensor, or load the pipeline in bfloat16",
        )


def _config(granularity: str) -> Any:
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        PerRow,
        PerTensor,
    )

    return Float8DynamicActivationFloat8WeightConfig(
        granularity=PerRow() if granularity == "per_row" else PerTensor(),
        activation_value_lb=LEAST,
        # Its inductor flags are the whole process's: undo could not take them back.
        set_inductor_config=False,
    )


def effect(work: Work, settings: Fp8DynamicSettings, telemetry: Telemetry | None) -> Work:
    """Mark the linear work in scope as FP8: half the weights, and one cast of every input."""
    new = FORMATS[settings.granularity]
    return quantized(work, settings, lambda op: dynamic(op, new))


def unfit(case: Case, settings: Fp8DynamicSettings) -> str | None:
    """Answer a sentence if scales per row are refused by torchao, or may crash in cuBLAS."""
    if settings.granularity != "per_row":
        return None
    if case.workload.dtype != "bfloat16":
        return f"fp8_dynamic scales bfloat16 weights per row; here they are {case.workload.dtype}"
    built = case.device.libraries.get("cuda", "")
    if built.startswith("12.9"):
        return f"fp8_dynamic may crash with scales per row on CUDA {built} (pytorch/ao#4582)"
    return None


def narrow(case: Case, telemetry: Telemetry | None) -> dict[str, Domain]:
    """Leave only per_tensor where per_row is unfit."""
    if unfit(case, Fp8DynamicSettings(granularity="per_row")) is None:
        return {}
    return {"granularity": Domain(choices=("per_tensor",))}


def observe(
    settings: Fp8DynamicSettings, statistics: Statistics, workload: Workload
) -> str | None:
    """Answer a sentence if no layer was quantized."""
    return none_quantized("fp8_dynamic", settings, statistics.get("layers"))


PASS = Pass(
    name="fp8_dynamic",
    family=Family.QUANTIZATION,
    stage=Stage.QUANTIZE,
    fidelity=Fidelity.APPROXIMATE,
    source="torchao Float8DynamicActivationFloat8WeightConfig; torch._scaled_mm",
    settings=Fp8DynamicSettings,
    owns=("denoiser.linear_precision",),
    needs=(
        compute_capability(
            "fp8_dynamic", (8, 9), "torchao 0.18 float8/inference.py _check_hardware_support"
        ),
        fused_adapters("fp8_dynamic"),
        block_list("fp8_dynamic"),
    ),
    imports=("torchao>=0.17",),
    effect=effect,
    apply=apply,
    observe=observe,
    narrow=narrow,
    unfit=unfit,
    seeds=(
        {"granularity": "per_row", "scope": "blocks"},
        {"granularity": "per_tensor", "scope": "blocks"},
        {"granularity": "per_row", "scope": "feed_forward"},
    ),
    batch_invariant=False,
)
