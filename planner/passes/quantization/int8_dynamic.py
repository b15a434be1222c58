"""INT8 weights and activations on the denoiser's linear layers, scales found at every call.

What it does: multiplies 8-bit integers (weights: one scale an output channel; activations: one
scale a tensor on the CPU, one a token on CUDA) inside the blocks. Embedders, adaptive norms and
the final projection keep their precision. One function chooses the kernel: torch's packed FBGEMM
kernel on the CPU, ONNX Runtime where torch has dropped that, torchao on CUDA.
When it helps: layers of 256×1024 and up on a CPU with VNNI or full-width AVX2, of 1024 and up on a
GPU, there with compile. On a first-generation EPYC a forward of width 256 gains a mere 1.04 times.
What it costs: packing once. The own weights stay, so that the pass can be taken off: on a GPU they
wait in the host's memory, on a CPU beside the packed ones. On the CPU weights have 7 bits, since
kernels without VNNI add two products of 8×8 bits in a saturating 16.
When not: narrow layers, adapters that are not fused, float16 on the CPU. torchao's own INT8 is
20 to 40 times slower than float32 on a CPU.
Source: LLM.int8-style dynamic W8A8; torchao Int8DynamicActivationInt8WeightConfig; ONNX Runtime's
quantization guide (reduce_range on AVX2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.case.work import Work
from planner.case.workload import Workload
from planner.hooks.blocks import denoiser_of
from planner.hooks.formats import Format, dynamic, quantized
from planner.hooks.integer import engine_for, integer_linear
from planner.hooks.linear import layers, none_quantized, swap_weights
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

INT8 = Format("int8", value=1, row=4)
"""One float32 scale an output channel; on a CPU the kernel finds the input's scale in one pass."""


class Int8DynamicSettings(Settings):
    """Which layers, and by which kernel."""

    scope: Scope = scope_knob()
    edges: int = edges_knob(high=2)
    engine: Literal["auto", "fbgemm", "onnxruntime", "torchao"] = knob(
        "auto", "kernel; auto takes the first that this device has"
    )


def apply(pipeline: Any, settings: Int8DynamicSettings, context: Context) -> Undo:
    """Give every layer in scope its INT8 kernel; packed weights stay in the memo."""
    found, excluded = layers(pipeline, settings)
    kind = context.device or str(denoiser_of(pipeline).device.type)
    engine = engine_for(kind, settings.engine)
    context.statistics.update(layers=len(found), excluded=len(excluded), engine=engine)
    if engine == "torchao":
        return swap_weights(found, lambda layer: integer_linear(layer, engine)["weight"])
    packed = [(layer, _packed(path, layer, engine, context.memo)) for path, layer in found]
    undo = [_override(layer, new) for layer, new in packed]

    def take_off() -> None:
        while undo:
            undo.pop()()

    return take_off


def _packed(path: str, layer: Any, engine: str, memo: dict[str, Any]) -> dict[str, Any]:
    weight = layer.weight
    stamp = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
    known = memo.get(f"{engine}:{path}")
    if known is None or known[0] != stamp:
        known = (stamp, integer_linear(layer, engine))
        memo[f"{engine}:{path}"] = known
    new: dict[str, Any] = known[1]
    return new


def _override(layer: Any, new: dict[str, Any]) -> Callable[[], None]:
    """Set instance attributes; returns the undo."""
    before = {name: vars(layer)[name] for name in new if name in vars(layer)}
    vars(layer).update(new)

    def restore() -> None:
        for name in new:
            del vars(layer)[name]
        vars(layer).update(before)

    return restore


def effect(work: Work, settings: Int8DynamicSettings, telemetry: Telemetry | None) -> Work:
    """Mark the linear work in scope as int8; weights shrink, inputs are read once more.

    In float32, the one format on a CPU, the own weights stay beside the packed ones.
    """
    both = any(
        op.kind == "linear" and op.block and op.dtype == "float32"
        for phase in work.phases if phase.name == "denoise" for op in phase.operations
    )  # fmt: skip
    return quantized(work, settings, lambda op: dynamic(op, INT8), both)


def observe(
    settings: Int8DynamicSettings, statistics: Statistics, workload: Workload
) -> str | None:
    """Answer a sentence if no layer was quantized."""
    return none_quantized("int8_dynamic", settings, statistics.get("layers"))


def _integer_unit(case: Case) -> str | None:
    device = case.device
    if device.kind == "cuda" and (device.capability or (0, 0)) < (8, 0):
        had = ".".join(map(str, device.capability or (0, 0)))
        return f"int8_dynamic needs compute capability 8.0 or newer; this device has {had}"
    if device.kind == "cpu" and "avx2" not in device.features:
        had = ", ".join(device.features) or "none"
        return f"int8_dynamic needs avx2 on a CPU; this one's features are {had}"
    return None


def _integer_kernel(case: Case) -> str | None:
    if case.device.kind != "cpu" or any(f.startswith("int8:") for f in case.device.features):
        return None
    return (
        "int8_dynamic needs torch's packed INT8 kernels or onnxruntime with onnx on a CPU; "
        f"here are torch {case.device.libraries.get('torch', 'unknown')} and neither: "
        "pip install 'diffusion-planner[onnx]'"
    )


def _float32_on_cpu(case: Case) -> str | None:
    if case.device.kind != "cpu" or case.workload.dtype == "float32":
        return None
    return f"int8_dynamic needs float32 on a CPU; this workload's dtype is {case.workload.dtype}"


PASS = Pass(
    name="int8_dynamic",
    family=Family.QUANTIZATION,
    stage=Stage.QUANTIZE,
    fidelity=Fidelity.APPROXIMATE,
    source="torchao Int8DynamicActivationInt8WeightConfig; torch.ops.quantized.linear_dynamic",
    settings=Int8DynamicSettings,
    owns=("denoiser.linear_precision",),
    needs=(
        Need(_integer_unit, "FBGEMM and torchao kernels; measured on AVX2"),
        Need(_integer_kernel, "torch.backends.quantized.supported_engines; ONNX Runtime"),
        Need(_float32_on_cpu, "torch.ops.quantized.linear_dynamic takes float32"),
        fused_adapters("int8_dynamic"),
        block_list("int8_dynamic"),
    ),
    effect=effect,
    apply=apply,
    observe=observe,
    seeds=({"scope": "blocks"}, {"scope": "feed_forward"}),
    batch_invariant=False,
)
