"""NVFP4 weights and activations on the denoiser's linear layers, scales found at every call.

What it does: stores the weights of the blocks' linear layers in 4 bits (E2M1: 0, ½, 1, 1½, 2, 3, 4
and 6 with a sign), every 16 values under one E4M3 scale and all of them under one float32 scale,
and casts their inputs likewise at every call. Embedders, adaptive norms, norm_out and the final
projection keep their precision, as do layers whose widths are no multiples of 16 and those of 64
outputs or fewer, which cuBLAS does not take.
When it helps: large layers on Blackwell, with compile: FLUX.1-schnell 1.34 times where FP8 gave
1.15. About 3.6 times less memory for what is quantized.
What it costs: the most of all formats in images: LPIPS .31 where FP8 had .17 (FLUX.1-schnell), so
that a ceiling near .1 is out of reach without weights trained for it. Finding scales and packing
takes 45 kernels a layer unless they are compiled, or MSLK's Triton kernel is installed. The own
weights wait in the host's memory, so that the pass can be taken off.
When not: anything before Blackwell (emulated: slower than FP8); torch built for CUDA 12, where it
was up to twice as slow as FP8; layers of 1024 and narrower. modelopt's NVFP4 is meant for export:
in torch it multiplies by TensorRT-LLM's kernels, or converts back before each product.
Source: torchao prototype.mx_formats NVFP4DynamicActivationNVFP4WeightConfig.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.case.work import Work
from planner.case.workload import Workload
from planner.hooks.formats import Format, dynamic, quantized
from planner.hooks.linear import layers, none_quantized, swap_weights, torchao_weight
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
    scope_knob,
)
from planner.passes.needs import block_list, compute_capability, fused_adapters

BLOCK = 16
"""Values that share an E4M3 scale; torchao raises where a width is no multiple."""

NARROW = 64
"""Outputs at which, and below which, cuBLAS has no kernel (torchao _auto_filter_for_nfp4)."""

CUDA = 13
"""Release of CUDA that torch must be built for."""

NVFP4 = Format("float4_e2m1fn_x2", value=0.5 + 1 / BLOCK, kernels=45, traffic=187)
"""What torchao's quantization of a 16-bit input launches and moves, counted where it runs."""


class Nvfp4Settings(Settings):
    """Which layers."""

    scope: Scope = scope_knob()
    edges: int = edges_knob(high=3)


def apply(pipeline: Any, settings: Nvfp4Settings, context: Context) -> Undo:
    """Give every layer in scope an NVFP4 weight that casts its input."""
    from torchao.prototype.mx_formats import NVFP4DynamicActivationNVFP4WeightConfig

    found, excluded = layers(pipeline, settings, _fits)
    config = NVFP4DynamicActivationNVFP4WeightConfig(use_triton_kernel=bool(find_spec("mslk")))
    undo = swap_weights(found, partial(torchao_weight, config))
    context.statistics.update(layers=len(found), excluded=len(excluded))
    return undo


def _fits(layer: Any) -> bool:
    """Tell whether torchao and cuBLAS take a layer, and without a scale of zero."""
    aligned = layer.in_features % BLOCK == layer.out_features % BLOCK == 0
    return aligned and layer.out_features > NARROW and bool(layer.weight.any())


def effect(work: Work, settings: Nvfp4Settings, telemetry: Telemetry | None) -> Work:
    """Mark the linear work in scope as NVFP4: 4½ bits a weight, and one cast of every input."""
    return quantized(work, settings, lambda op: dynamic(op, NVFP4))


def observe(settings: Nvfp4Settings, statistics: Statistics, workload: Workload) -> str | None:
    """Answer a sentence if no layer was quantized."""
    return none_quantized("nvfp4", settings, statistics.get("layers"))


def _built_for_cuda_13(case: Case) -> str | None:
    built = case.device.libraries.get("cuda")
    if case.device.kind != "cuda" or built is None:
        return None
    major = built.partition(".")[0]
    if major.isdigit() and int(major) >= CUDA:
        return None
    return f"nvfp4 needs torch built for CUDA {CUDA} or newer; this one is built for {built}"


def _not_float16(case: Case) -> str | None:
    if case.workload.dtype != "float16":
        return None
    return "nvfp4 needs bfloat16 or float32; this workload's dtype is float16"


PASS = Pass(
    name="nvfp4",
    family=Family.QUANTIZATION,
    stage=Stage.QUANTIZE,
    fidelity=Fidelity.APPROXIMATE,
    source="torchao NVFP4DynamicActivationNVFP4WeightConfig; torch._scaled_mm",
    settings=Nvfp4Settings,
    owns=("denoiser.linear_precision",),
    needs=(
        compute_capability(
            "nvfp4", (10, 0), "torchao 0.18 mx_formats/inference_workflow.py is_sm_at_least_100"
        ),
        Need(_built_for_cuda_13, "blog.comfy.org: NVFP4 up to 2x slower than FP8 without cu130"),
        Need(_not_float16, "torchao 0.18 mx_formats/nvfp4_tensor.py nvfp4_quantize"),
        fused_adapters("nvfp4"),
        block_list("nvfp4"),
    ),
    imports=("torchao>=0.17",),
    effect=effect,
    apply=apply,
    observe=observe,
    seeds=({"scope": "blocks", "edges": 2}, {"scope": "feed_forward", "edges": 2}),
    batch_invariant=False,
)
