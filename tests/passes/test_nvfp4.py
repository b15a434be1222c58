"""NVFP4 with scales at every call: what it refuses, what it stores, what it costs.

torch multiplies NVFP4 on Blackwell alone: the product is checked as far as its factors.
"""

from typing import Any

import pytest
import torch

from planner.hooks.linear import layers, torchao_weight
from planner.passes import registry
from planner.passes.quantization import nvfp4
from planner.passes.quantization.nvfp4 import NVFP4, Nvfp4Settings
from planner.plans.graph import build
from planner.plans.plan import Plan
from tests.passes.driving import Bench, leftovers
from tests.passes.lowbit import Counted, held, on_gpu, weighed

PASS = registry.get("nvfp4")
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
"""Every magnitude of the format, in order: even places have even mantissas."""


@pytest.fixture(autouse=True)
def any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchao quantizes on CPUs too; only its guard refuses them."""
    monkeypatch.setattr(
        "torchao.prototype.mx_formats.inference_workflow.is_sm_at_least_100", lambda: True
    )


def layer(inputs: int = 64, outputs: int = 96) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(inputs, outputs, dtype=torch.bfloat16).requires_grad_(False)


def quantized(linear: torch.nn.Linear) -> Any:
    from torchao.prototype.mx_formats import NVFP4DynamicActivationNVFP4WeightConfig

    config = NVFP4DynamicActivationNVFP4WeightConfig(use_triton_kernel=False)
    return torchao_weight(config, linear)


def reference(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values in two levels, and the scale of each: a float32 for all, an E4M3 for 16."""
    blocks = x.float().reshape(-1, 16)
    whole = x.float().abs().max() / (448 * 6)
    largest = blocks.abs().amax(1, keepdim=True)
    scale = (largest / 6 / whole).clamp(2.0**-6, 448).to(torch.float8_e4m3fn).float() * whole
    places = (blocks.abs() / scale).clamp(max=6)
    upper = torch.bucketize(places, E2M1).clamp(1, len(E2M1) - 1)
    low, high = E2M1[upper - 1], E2M1[upper]
    below, above = places - low, high - places
    nearest = torch.where((below < above) | ((below == above) & (upper % 2 == 1)), low, high)
    return (nearest.copysign(blocks) * scale).reshape(x.shape), scale.expand_as(blocks)


@pytest.mark.parametrize(("capability", "said"), [
    ((8, 0), "this device has 8.0"), ((8, 9), "this device has 8.9"),
    ((9, 0), "this device has 9.0"), ((10, 0), None), ((12, 0), None),
])  # fmt: skip
def test_the_gate_is_blackwell(bench: Bench, capability: tuple[int, int], said: str | None) -> None:
    wanted = "nvfp4 needs compute capability 10.0 or newer; "
    assert PASS.missing(on_gpu(bench.case, capability)) == ((wanted + said,) if said else ())


@pytest.mark.parametrize(("cuda", "said"), [
    ("12.8", "built for 12.8"), ("none", "built for none"), ("13.0", ""), ("14.1", ""),
])  # fmt: skip
def test_torch_built_for_cuda_12_is_refused(bench: Bench, cuda: str, said: str) -> None:
    found = PASS.missing(on_gpu(bench.case, cuda=cuda))
    wanted = "nvfp4 needs torch built for CUDA 13 or newer; this one is "
    assert found == ((wanted + said,) if said else ())


def test_a_declared_gpu_without_libraries_is_not_refused(bench: Bench) -> None:
    case = on_gpu(bench.case)
    bare = case.model_copy(update={"device": case.device.model_copy(update={"libraries": {}})})
    assert PASS.missing(bare) == ()


def test_float16_a_cpu_and_loose_adapters_are_refused(bench: Bench) -> None:
    (said,) = PASS.missing(on_gpu(bench.case, dtype="float16"))
    assert said == "nvfp4 needs bfloat16 or float32; this workload's dtype is float16"
    (said,) = PASS.missing(bench.case)
    assert said == "nvfp4 needs compute capability 10.0 or newer; this device is a cpu"
    model = bench.case.model.model_copy(update={"adapters": ("a style",)})
    (said,) = PASS.missing(on_gpu(bench.case.model_copy(update={"model": model})))
    assert said == "nvfp4 needs adapters fused; loaded are a style"


def test_one_number_format_stands_in_a_plan(bench: Bench) -> None:
    graph = build(on_gpu(bench.case))
    said = str(graph.why_not(Plan.of({"nvfp4": {}, "fp8_dynamic": {}})))
    assert "fp8_dynamic and nvfp4 both own denoiser.linear_precision" in said


def test_weights_are_those_of_the_formats_definition() -> None:
    linear = layer(256, 128)
    linear.weight[3, 7] = 40.0  # an outlier
    linear.weight[5, 32:48] = 0.0
    found = quantized(linear)
    assert found.qdata.numel() == linear.weight.numel() / 2
    expected, scale = reference(linear.weight)
    got = found.dequantize(torch.float32)
    # Multiplied by a reciprocal where the definition divides: ties may fall to the other side.
    assert (got != expected).float().mean() < 2e-3
    error = (got - linear.weight.float()).abs().reshape(-1, 16)
    assert (error <= scale * 1.0001).all(), "half of the widest gap, 4 to 6"
    assert (got[5, 32:48] == 0).all() and got.isfinite().all()
    row = got[3] != 0
    assert row[:16].sum() == 1 and row[16:].float().mean() > 0.8, "it spoils its neighbours alone"


def test_what_the_format_holds_exactly_stays_exact() -> None:
    linear = layer(64, 96)
    signs = torch.randint(0, 2, (96, 64)) * 2.0 - 1
    exact = E2M1[torch.randint(8, (96, 64))] * signs
    exact[:, ::16] = 6.0  # every block's largest
    exact[::2] *= 448 * 2.0**-8  # two scales that E4M3 holds: 448 and 256 times the global one
    linear.weight.copy_(exact)
    assert torch.equal(quantized(linear).dequantize(torch.float32), exact)


def test_layers_that_cublas_or_the_blocks_of_16_do_not_take_stay(bench: Bench) -> None:
    assert nvfp4._fits(layer()) and not nvfp4._fits(layer(64, 64))
    assert not nvfp4._fits(layer(40, 96)) and not nvfp4._fits(layer(64, 100))
    dead = layer()
    dead.weight.zero_()
    assert not nvfp4._fits(dead)
    found, excluded = layers(bench.pipe, Nvfp4Settings(), nvfp4._fits)
    assert len(found) == 6 and {"transformer.proj_out", "transformer.x_embedder"} <= {*excluded}
    assert not any("norm" in path for path, _ in found)


def test_on_and_off_again_every_weight_is_the_same(bench: Bench) -> None:
    denoiser = bench.pipe.transformer
    weights = dict(denoiser.named_parameters())
    before = sum(map(held, denoiser.parameters()))
    with bench.put({"nvfp4": {}}) as handle:
        assert handle.stats["nvfp4"] == {"layers": 6, "excluded": 42}
        assert handle.complaints() == {}
        wide = denoiser.single_transformer_blocks[0].proj_mlp
        assert type(wide.weight).__name__ == "NVFP4Tensor"
        assert held(wide.weight) < weights["single_transformer_blocks.0.proj_mlp.weight"].nbytes / 3
    assert all(weights[name] is one for name, one in denoiser.named_parameters())
    assert sum(map(held, denoiser.parameters())) == before and leftovers(bench.pipe) == []
    assert torch.equal(bench.draw(), bench.untouched)


def test_no_layer_in_scope_is_reported_as_inert(bench: Bench) -> None:
    with bench.put({"nvfp4": {"scope": "attention"}}) as handle:
        assert handle.complaints() == {
            "nvfp4": "nvfp4 quantized no layer at scope attention, edges 0"
        }


def test_the_effect_is_four_and_a_half_bits_a_weight_and_a_cast_a_layer(bench: Bench) -> None:
    work = weighed(bench)
    after = PASS.effect(work, Nvfp4Settings(scope="feed_forward"), None)
    for phase, new in zip(work.phases, after.phases, strict=True):
        marked = [op for op in new.operations if op.dtype == "float4_e2m1fn_x2"]
        old = {op.path: op for op in phase.operations if op.kind == "linear"}
        assert bool(marked) == (phase.name == "denoise")
        assert all(op.weights == old[op.path].weights / 32 * 4.5 for op in marked)
        assert sum(op.flops for op in new.operations) == sum(op.flops for op in phase.operations)
        casts = [op for op in new.operations if op.launches == NVFP4.kernels]
        assert len(casts) == sum(op.launches for op in marked)
    saved = sum(op.weights for op in work.phases[1].operations) - sum(
        op.weights for op in after.phases[1].operations
    )
    assert after.parts[0].bytes == work.parts[0].bytes - saved < work.parts[0].bytes


def test_what_a_cast_launches_and_moves_is_counted() -> None:
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    x = torch.randn(128, 2048, dtype=torch.bfloat16)
    with Counted() as counted:
        scale = per_tensor_amax_to_scale(torch.max(torch.abs(x)))
        NVFP4Tensor.to_nvfp4(x, per_tensor_scale=scale, is_swizzled_scales=True)
    assert counted.kernels == NVFP4.kernels and NVFP4.traffic is not None
    assert counted.bytes / x.numel() == pytest.approx(NVFP4.traffic, rel=0.01)
