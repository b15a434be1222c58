"""INT8 weights alone: who may have them, that they are really stored so, what a call costs."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from planner.hooks.linear import torchao_weight
from planner.passes import registry
from planner.passes.quantization import int8_weight
from planner.passes.quantization.int8_weight import Int8WeightSettings
from planner.plans.graph import build
from tests import test_conformance as contract
from tests.cases import flux_case
from tests.passes.driving import Bench, leftovers, without_weights
from tests.passes.lowbit import Counted, held, on_gpu, stored, weighed

PASS = registry.get("int8_weight")
CONTRACT = (
    contract.test_the_effect_agrees_with_what_apply_really_computes,
    contract.test_off_again_the_output_is_bit_equal_also_the_second_time,
    contract.test_an_exception_in_the_middle_of_a_run_leaves_no_state_behind,
    contract.test_statistics_are_json_scalars_and_observe_is_content,
    contract.test_an_image_depends_on_its_neighbours_only_where_the_pass_says_so,
    contract.test_twenty_times_on_and_off_leave_nothing_and_grow_nothing,
)


@pytest.fixture
def clean(bench: Bench) -> Iterator[Bench]:
    yield bench
    assert leftovers(bench.pipe) == []


def layer(dtype: torch.dtype = torch.float32) -> torch.nn.Linear:
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 96, dtype=dtype).requires_grad_(False)
    linear.weight[3] *= 1000.0  # an outlier
    linear.weight[5] = 0.0
    return linear


def by_torchao(linear: torch.nn.Linear) -> Any:
    new = torch.nn.Linear(64, 96, dtype=linear.bias.dtype).requires_grad_(False)
    new.weight, new.bias = torchao_weight(int8_weight._config(), linear), linear.bias
    return new


LIBRARIES = {"torchao": by_torchao, "modelopt": int8_weight._modelopt}


def test_a_cpu_is_refused_and_its_search_leaves_the_pass_out(bench: Bench) -> None:
    (said,) = PASS.missing(bench.case)
    assert said == (
        "int8_weight needs a device with memory of its own; a cpu would hold both copies"
    )
    assert "int8_weight" in build(flux_case()).excluded
    for capability in ((8, 0), (8, 9), (9, 0), (10, 0), (12, 0)):
        assert PASS.missing(on_gpu(bench.case, capability)) == ()


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_integers_and_the_product_is_theirs(library: str, dtype: torch.dtype) -> None:
    linear = layer(dtype)
    x = torch.randn(2, 10, 64).to(dtype)
    expected = linear(x).float()
    own = linear.weight.clone()
    new = LIBRARIES[library](linear)
    assert new.weight.device == linear.weight.device and new.bias is linear.bias
    got = new(x).float()
    # Every weight is off by half a step at most, whose size is its own row's.
    step = own.float().abs().amax(1) / 127
    most = x.float().abs().sum(-1, keepdim=True) * step / 2
    rounding = expected.abs() * 2.0**-7 if dtype == torch.bfloat16 else 1e-4
    assert ((got - expected).abs() <= most * 1.05 + rounding * 2 + 1e-2).all()
    assert torch.allclose(got[..., 5], linear.bias[5].float().expand(2, 10))
    assert torch.equal(linear.weight, own)


def test_rounding_is_to_the_nearest_of_255_steps() -> None:
    linear = layer()
    found = torchao_weight(int8_weight._config(), linear)
    assert found.qdata.dtype == torch.int8 and held(found) == 96 * 64 + 96 * int8_weight.ROW
    step = linear.weight.abs().amax(1, keepdim=True) / 127.5
    error = (found.dequantize() - linear.weight).abs()
    assert (error <= step * 0.5001 + 1e-9).all()


@pytest.mark.parametrize("check", CONTRACT)
def test_the_contract_holds_also_on_a_cpu(clean: Bench, check: Callable[..., None]) -> None:
    check(PASS, clean)


def test_modelopt_draws_the_same_image_and_leaves_the_very_same_layers(clean: Bench) -> None:
    denoiser = clean.pipe.transformer
    modules = dict(denoiser.named_modules())
    with clean.put({"int8_weight": {}}):
        expected = clean.draw()
        size = stored(clean)
    for _ in range(2):
        with clean.put({"int8_weight": {"library": "modelopt"}}) as handle:
            assert handle.stats["int8_weight"]["library"] == "modelopt"
            image = clean.draw()
            assert stored(clean) < size * 1.01
        assert dict(denoiser.named_modules()) == modules
    assert torch.allclose(image, expected, atol=0.02)
    assert torch.equal(clean.draw(), clean.untouched)


@pytest.mark.parametrize("scope", ["blocks", "attention", "feed_forward"])
def test_the_effect_is_less_memory_and_more_traffic(clean: Bench, scope: str) -> None:
    work = weighed(clean)
    after = PASS.effect(work, Int8WeightSettings(scope=scope), None)
    with clean.put({"int8_weight": {"scope": scope}}):
        assert after.parts[0].bytes == pytest.approx(stored(clean), rel=0.002)
    assert after.parts[0].bytes < work.parts[0].bytes and after.flops == work.flops
    for phase, new in zip(work.phases, after.phases, strict=True):
        assert {op.dtype for op in new.operations} == {op.dtype for op in phase.operations}
        moved = [sum(op.bytes for op in one.operations) for one in (phase, new)]
        assert moved[1] > moved[0] if phase.name == "denoise" else moved[1] == moved[0]


def test_a_layer_is_converted_multiplied_scaled_and_biased() -> None:
    new = by_torchao(layer())
    x = torch.randn(10, 64)
    with Counted() as counted:
        new(x)
    assert counted.kernels == 4


def test_without_known_weights_nothing_is_promised(bench: Bench) -> None:
    work = without_weights(bench.work)
    assert PASS.effect(work, Int8WeightSettings(), None) == work


def test_no_layer_in_scope_is_reported_as_inert(clean: Bench) -> None:
    with clean.put({"int8_weight": {"edges": 2}}) as handle:
        assert handle.complaints() == {
            "int8_weight": "int8_weight quantized no layer at scope blocks, edges 2"
        }
