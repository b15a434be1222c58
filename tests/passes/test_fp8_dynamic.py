"""FP8 with scales at every call: what it refuses, what it computes, what it costs."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch

from planner.errors import UsageError
from planner.hooks.linear import layers, swap_weights, torchao_weight
from planner.passes import registry
from planner.passes.quantization import fp8_dynamic
from planner.passes.quantization.fp8_dynamic import FORMATS, LEAST, Fp8DynamicSettings
from planner.plans.graph import build
from planner.plans.plan import Plan
from planner.run.apply import put_on
from tests import test_conformance as contract
from tests.passes.driving import Bench, leftovers, without_weights
from tests.passes.lowbit import Counted, on_gpu, stored, weighed

PASS = registry.get("fp8_dynamic")
GRANULARITIES = ("per_tensor", "per_row")
E4M3 = torch.tensor([
    mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    for exponent in range(16) for mantissa in range(8)
    if (exponent, mantissa) != (15, 7)  # not a number; there is no infinity
])  # fmt: skip
"""Every magnitude of the format, in order: even places have even mantissas."""


@pytest.fixture(autouse=True)
def any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch multiplies E4M3 on CPUs too; only torchao's guard refuses them."""
    monkeypatch.setattr(
        "torchao.quantization.quant_api._check_hardware_support", lambda granularity: None
    )


@pytest.fixture
def clean(bench: Bench) -> Iterator[Bench]:
    yield bench
    assert leftovers(bench.pipe) == []


def layer(inputs: int = 64, outputs: int = 96) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(inputs, outputs, dtype=torch.bfloat16).requires_grad_(False)


def quantized(linear: torch.nn.Linear, granularity: str) -> Any:
    return torchao_weight(fp8_dynamic._config(granularity), linear)


def reference(x: torch.Tensor, granularity: str) -> torch.Tensor:
    """Values as E4M3 with one float32 scale (largest / 448) a row or a tensor: nearest, then even.

    torchao divides in the weights' own format before it widens the scale.
    """
    largest = x.abs().amax(1, keepdim=True) if granularity == "per_row" else x.abs().max()
    scale = (largest / 448).float()
    places = (x.float().abs() / scale).clamp(max=448)
    upper = torch.bucketize(places, E4M3).clamp(1, len(E4M3) - 1)
    low, high = E4M3[upper - 1], E4M3[upper]
    below, above = places - low, high - places
    nearest = torch.where((below < above) | ((below == above) & (upper % 2 == 1)), low, high)
    return nearest.copysign(x.float()) * scale


def test_the_table_of_values_is_the_formats() -> None:
    assert len(E4M3) == 127 and E4M3.max() == 448 and E4M3[1] == 2.0**-9
    assert torch.equal(E4M3.to(torch.float8_e4m3fn).float(), E4M3)


@pytest.mark.parametrize(("capability", "said"), [
    ((8, 0), "fp8_dynamic needs compute capability 8.9 or newer; this device has 8.0"),
    ((8, 9), None), ((9, 0), None), ((10, 0), None), ((12, 0), None),
])  # fmt: skip
def test_the_gate_is_ada(bench: Bench, capability: tuple[int, int], said: str | None) -> None:
    assert PASS.missing(on_gpu(bench.case, capability)) == ((said,) if said else ())


def test_a_cpu_and_loose_adapters_are_refused_with_what_they_are(bench: Bench) -> None:
    (said,) = PASS.missing(bench.case)
    assert said == "fp8_dynamic needs compute capability 8.9 or newer; this device is a cpu"
    model = bench.case.model.model_copy(update={"adapters": ("a style",)})
    (said,) = PASS.missing(on_gpu(bench.case.model_copy(update={"model": model})))
    assert said == "fp8_dynamic needs adapters fused; loaded are a style"


def test_an_old_torchao_is_refused_with_what_to_install(bench: Bench) -> None:
    case = on_gpu(bench.case)
    device = case.device.model_copy(update={"libraries": {"torchao": "0.10.0"}})
    old = case.model_copy(update={"device": device})
    assert "torchao is 0.10.0, but needed is torchao>=0.17" in build(old).excluded["fp8_dynamic"]


@pytest.mark.parametrize(("dtype", "cuda", "said"), [
    ("bfloat16", "13.0", None), ("bfloat16", "12.9", "may crash with scales per row on CUDA 12.9"),
    ("float16", "13.0", "scales bfloat16 weights per row; here they are float16"),
])  # fmt: skip
def test_scales_per_row_are_searched_only_where_they_can_be_had(
    bench: Bench, dtype: str, cuda: str, said: str | None
) -> None:
    case = on_gpu(bench.case, dtype=dtype, cuda=cuda)
    assert PASS.unfit is not None and PASS.narrow is not None
    answer = PASS.unfit(case, Fp8DynamicSettings(granularity="per_row"))
    assert answer is None if said is None else said in str(answer)
    assert PASS.unfit(case, Fp8DynamicSettings(granularity="per_tensor")) is None
    found = PASS.narrow(case, None)
    assert found == {} if said is None else found["granularity"].choices == ("per_tensor",)


def test_scales_per_row_of_other_weights_are_refused_and_nothing_stays(clean: Bench) -> None:
    with pytest.raises(UsageError, match="weights are float32, not bfloat16") as caught:
        clean.put({"fp8_dynamic": {"granularity": "per_row"}})
    assert caught.value.value == "per_row" and "per_tensor" in caught.value.way_out
    assert torch.equal(clean.draw(), clean.untouched)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_weights_are_those_of_the_formats_definition(granularity: str) -> None:
    linear = layer(256, 128)
    linear.weight[3] *= 300.0  # an outlier
    found = quantized(linear, granularity)
    assert found.qdata.dtype == torch.float8_e4m3fn
    expected = reference(linear.weight, granularity)
    assert torch.equal(found.dequantize(torch.float32), expected)
    error = (expected - linear.weight.float()).abs()
    scale = found.scale.expand(128, 256)
    assert (error <= torch.maximum(linear.weight.float().abs() / 16, scale * 2.0**-10) * 1.01).all()
    if granularity == "per_row":
        others = [row for row in range(128) if row != 3]
        alone = reference(linear.weight[others], "per_tensor")
        assert error[others].sum() < (alone - linear.weight[others].float()).abs().sum()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_what_the_format_holds_exactly_stays_exact(granularity: str) -> None:
    linear = layer(256, 16)
    linear.weight.copy_(E4M3[torch.randint(len(E4M3), (16, 256))] / -64)
    linear.weight[:, 0] = 7.0  # every row's largest, so that its scale is a power of two
    found = quantized(linear, granularity)
    assert torch.equal(found.dequantize(torch.bfloat16), linear.weight)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_product_is_that_of_the_rounded_factors(granularity: str) -> None:
    linear = layer()
    x = torch.randn(20, 64, dtype=torch.bfloat16)
    x[0] *= 100.0
    factors = reference(x, granularity), reference(linear.weight, granularity)
    expected = factors[0] @ factors[1].T + linear.bias.float()
    linear.weight = quantized(linear, granularity)
    got = linear(x).float()
    assert torch.allclose(got, expected, rtol=2.0**-7, atol=0.02)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_tokens_of_zeros_give_the_bias_and_dead_channels_are_left_alone(granularity: str) -> None:
    linear = layer()
    linear.weight[5] = 0.0
    fits = partial(fp8_dynamic._fits, granularity)
    assert fits(linear) == (granularity == "per_tensor") and not fits(layer(64, 100))
    assert not fits(layer(40, 96)) and fits(layer())
    linear = layer()
    linear.weight = quantized(linear, granularity)
    x = torch.zeros(4, 64, dtype=torch.bfloat16)
    assert torch.equal(linear(x), linear.bias.expand(4, 96))
    assert torch.tensor(LEAST, dtype=torch.float16) == LEAST, "float16 must not round it to zero"


def test_every_scale_per_row_on_a_pipeline_in_bfloat16() -> None:
    from tests.tiny import tiny_case, tiny_flux

    pipe = tiny_flux().to(torch.bfloat16)
    case = tiny_case(pipe)
    weights = dict(pipe.transformer.named_parameters())
    x = torch.randn(1, 16, 32, dtype=torch.bfloat16)
    block = pipe.transformer.single_transformer_blocks[0]
    before = block.proj_mlp(x)
    with put_on(pipe, Plan.of({"fp8_dynamic": {"granularity": "per_row"}}), case) as handle:
        assert handle.stats["fp8_dynamic"] == {"layers": 34, "excluded": 14}
        after = block.proj_mlp(x)
        assert 0 < (after - before).float().norm() / before.float().norm() < 0.06
    assert all(weights[name] is one for name, one in pipe.transformer.named_parameters())
    assert torch.equal(block.proj_mlp(x), before)


@pytest.mark.parametrize("check", [
    contract.test_the_effect_agrees_with_what_apply_really_computes,
    contract.test_off_again_the_output_is_bit_equal_also_the_second_time,
    contract.test_an_exception_in_the_middle_of_a_run_leaves_no_state_behind,
    contract.test_statistics_are_json_scalars_and_observe_is_content,
    contract.test_twenty_times_on_and_off_leave_nothing_and_grow_nothing,
])  # fmt: skip
def test_the_contract_holds_where_torch_multiplies_e4m3(
    clean: Bench, check: Callable[..., None]
) -> None:
    check(PASS, clean)


@pytest.mark.parametrize("scope", ["blocks", "attention", "feed_forward"])
def test_the_effect_is_the_work_and_the_memory_that_there_is(clean: Bench, scope: str) -> None:
    values = {"scope": scope, "edges": 1}
    work = weighed(clean)
    after = PASS.effect(work, Fp8DynamicSettings(**values), None)
    marked = sum(
        phase.calls * op.flops for phase in after.phases for op in phase.operations
        if op.dtype == "float8_e4m3fn"
    )  # fmt: skip
    with clean.put({"fp8_dynamic": values}), Counted() as counted:
        clean.draw()
        held = stored(clean)
    assert marked == counted.products > 0
    assert after.parts[0].bytes == pytest.approx(held, rel=0.001)
    assert after.flops < work.flops * (1 + 1e-9)


def test_inputs_are_cast_beside_the_product_and_only_weights_shrink(bench: Bench) -> None:
    work = weighed(bench)
    after = PASS.effect(work, Fp8DynamicSettings(granularity="per_row"), None)
    old, new = ([op for op in one.phases[1].operations if op.path == "transformer_blocks.0.attn"]
                for one in (work, after))  # fmt: skip
    (was,) = [op for op in old if op.kind == "linear"]
    (product,) = [op for op in new if op.kind == "linear"]
    casts = [op for op in new if op.launches == 9]
    assert len(casts) == was.launches == 8 and all(op.flops == 0 for op in casts)
    assert product.weights == pytest.approx(was.weights / 4 + 8 * 32 * 4, rel=0.05)
    assert product.bytes < was.bytes and product.flops == was.flops


def test_without_known_weights_all_bytes_shrink(bench: Bench) -> None:
    work = without_weights(bench.work)
    after = PASS.effect(work, Fp8DynamicSettings(), None)
    pairs = zip(work.phases[1].operations, after.phases[1].operations, strict=True)
    changed = [(was, new) for was, new in pairs if new.dtype == "float8_e4m3fn"]
    assert changed and all(new.bytes == was.bytes / 4 for was, new in changed)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_what_a_cast_launches_and_moves_is_counted(granularity: str) -> None:
    from torchao.quantization.quantize_.workflows import Float8Tensor

    config = fp8_dynamic._config(granularity)
    x = torch.randn(64, 2048, dtype=torch.bfloat16)
    with Counted() as counted:
        Float8Tensor.from_hp(x, granularity=config.granularity[0], hp_value_lb=LEAST)
    cost = FORMATS[granularity]
    assert counted.kernels == cost.kernels and cost.traffic is not None
    assert counted.bytes / x.numel() == pytest.approx(cost.traffic, rel=0.01)


def test_no_layer_in_scope_is_reported_as_inert(clean: Bench) -> None:
    with clean.put({"fp8_dynamic": {"edges": 2}}) as handle:
        assert handle.complaints() == {
            "fp8_dynamic": "fp8_dynamic quantized no layer at scope blocks, edges 2"
        }


def test_weights_that_are_quantized_already_are_left_alone(clean: Bench) -> None:
    with clean.put({"fp8_dynamic": {"scope": "attention"}}):
        found, excluded = layers(clean.pipe, Fp8DynamicSettings())
    assert len(found) == 12 and len(excluded) == 36


def test_a_failure_on_the_way_gives_every_weight_back() -> None:
    first, second = layer(), layer()
    own = first.weight

    def new(linear: torch.nn.Linear) -> Any:
        if linear is second:
            raise MemoryError("no room")
        return quantized(linear, "per_row")

    with pytest.raises(MemoryError):
        swap_weights([("a", first), ("b", second)], new)
    assert first.weight is own
