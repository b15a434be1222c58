"""INT8 linear layers: kernels, scopes, and that both kernels are real."""

import gc
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from planner.case.work import Work
from planner.errors import UsageError
from planner.hooks import integer
from planner.hooks.integer import engine_for, integer_linear
from planner.hooks.linear import layers
from planner.passes import registry
from planner.passes.quantization.int8_dynamic import Int8DynamicSettings
from planner.prediction.trace import trace
from planner.run.apply import LeavesCaseWarning
from tests.passes.driving import Bench
from tests.passes.lowbit import weighed

PASS = registry.get("int8_dynamic")
HAS_ONNX = find_spec("onnxruntime") is not None and find_spec("onnx") is not None
NO_ONNX = "the way on needs onnx and onnxruntime, which planner does not require"
ENGINES = (
    "fbgemm",
    pytest.param("onnxruntime", marks=pytest.mark.skipif(not HAS_ONNX, reason=NO_ONNX)),
)


def layer(features: int = 64, outputs: int = 96, bias: bool = True) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(features, outputs, bias=bias).requires_grad_(False)


def quantized(linear: torch.nn.Linear, engine: str) -> torch.nn.Linear:
    """The same layer, computing in INT8 from now on."""
    vars(linear).update(integer_linear(linear, engine))
    return linear


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bias", [True, False])
def test_both_kernels_are_close_to_the_float_layer(engine: str, bias: bool) -> None:
    linear = layer(bias=bias)
    x = torch.randn(2, 10, 64)
    expected = linear(x)
    got = quantized(linear, engine)(x)
    assert got.shape == expected.shape and got.dtype == torch.float32
    error = (got - expected).abs().mean() / expected.abs().mean()
    assert 0.0 < error < 0.03


@pytest.mark.parametrize("engine", ENGINES)
def test_long_sums_of_large_values_do_not_saturate(engine: str) -> None:
    linear = layer(512, 8, bias=False)
    linear.weight.fill_(1.0)
    got = quantized(linear, engine)(torch.ones(4, 512))
    assert torch.allclose(got, torch.full((4, 8), 512.0), rtol=0.01)


@pytest.mark.parametrize("engine", ENGINES)
def test_inside_compiled_code_the_operator_gives_the_same(engine: str) -> None:
    linear: Any = quantized(layer(), engine)
    x = torch.randn(3, 64)
    operator: Any = torch.ops.planner.int8_linear
    assert torch.equal(operator(x, linear._planner_handle, 96), linear(x))
    shape = operator(x.to("meta"), linear._planner_handle.to("meta"), 96).shape
    assert shape == (3, 96)


def test_a_kernel_nobody_holds_is_forgotten() -> None:
    new = integer_linear(layer(), "fbgemm")
    number = new["_planner_kernel"].number
    assert number in integer._KERNELS
    new.clear()
    gc.collect()
    assert number not in integer._KERNELS


def test_an_engine_that_is_not_here_is_refused_with_those_that_are() -> None:
    assert engine_for("cpu") == "fbgemm" and engine_for("cuda") == "torchao"
    with pytest.raises(UsageError, match="cannot use 'torchao' on cpu") as caught:
        engine_for("cpu", "torchao")
    assert caught.value.way_out.startswith("this installation has fbgemm")


@pytest.mark.parametrize(
    ("scope", "edges", "count"),
    [("blocks", 0, 34), ("attention", 0, 22), ("feed_forward", 0, 12), ("blocks", 1, 17),
     ("blocks", 2, 0)],
)  # fmt: skip
def test_scope_and_edges_choose_layers_and_never_norms_or_embedders(
    bench: Bench, scope: str, edges: int, count: int
) -> None:
    found, excluded = layers(bench.pipe, Int8DynamicSettings(scope=scope, edges=edges))
    assert len(found) == count and len(found) + len(excluded) == 48
    assert not any("norm" in path or "embed" in path for path, _ in found)
    assert "transformer.proj_out" in excluded


@pytest.mark.parametrize("scope", ["blocks", "attention", "feed_forward"])
def test_the_effect_marks_the_very_work_that_runs_in_int8(bench: Bench, scope: str) -> None:
    values = {"scope": scope, "edges": 1}
    predicted = PASS.effect(bench.work, Int8DynamicSettings(**values), None)
    with bench.put({"int8_dynamic": values}), pytest.warns(LeavesCaseWarning):
        counted = trace(bench.pipe, bench.case.workload)  # one step instead of ten
    assert linear_work(predicted, "int8") == linear_work(counted, "int8") > 0
    assert linear_work(predicted, "float32") == linear_work(counted, "float32") > 0


def linear_work(work: Work, dtype: str) -> float:
    """The linear work of a conditional forward in one precision."""
    return sum(
        op.flops for op in work.phases[1].operations if op.kind == "linear" and op.dtype == dtype
    )


def test_weights_shrink_inputs_are_read_in_a_byte_and_the_cast_stands_beside(bench: Bench) -> None:
    work = weighed(bench)
    after = PASS.effect(work, Int8DynamicSettings(), None)
    rows = {"transformer_blocks.0.attn": 8 * 32, "transformer_blocks.0.ff": 160}
    for path, count in rows.items():
        was, found = ([op for op in one.phases[1].operations if op.path == path]
                      for one in (work, after))  # fmt: skip
        (old,) = (op for op in was if op.kind == "linear")
        (new,) = (op for op in found if op.kind == "linear")
        casts = [op for op in found if op.kind == "elementwise" and op.flops == 0]
        assert new.weights == pytest.approx(old.weights / 4 + 4 * count, rel=0.05)
        inputs = (old.bytes - old.weights) / 8
        assert new.bytes - new.weights == pytest.approx(inputs * (1 + 4))
        assert sum(op.bytes for op in casts) == pytest.approx(inputs * (4 + 1))
    grown = after.parts[0].bytes / work.parts[0].bytes
    assert 1 < grown < 1.25, "on a CPU both copies stay"


def test_torchao_gives_back_the_very_same_weights(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "planner.passes.quantization.int8_dynamic.engine_for", lambda kind, wanted: "torchao"
    )
    weights = dict(bench.pipe.transformer.named_parameters())
    with bench.put({"int8_dynamic": {}}):
        linear = bench.pipe.transformer.transformer_blocks[0].attn.to_q
        assert type(linear.weight).__name__ == "Int8Tensor"
        image = bench.draw()
    assert all(weights[name] is one for name, one in bench.pipe.transformer.named_parameters())
    error = (image - bench.untouched).abs().mean() / bench.untouched.abs().mean()
    assert 0 < error < 0.05 and torch.equal(bench.draw(), bench.untouched)


def test_weights_are_packed_once_and_again_when_they_change(bench: Bench) -> None:
    plan = {"int8_dynamic": {"scope": "attention"}}
    linear = bench.pipe.transformer.transformer_blocks[0].attn.to_q
    with bench.put(plan):
        first = vars(linear)["_planner_kernel"]
    with bench.put(plan):
        assert vars(linear)["_planner_kernel"] is first
    linear.weight.mul_(1.0)
    with bench.put(plan):
        assert vars(linear)["_planner_kernel"] is not first


def test_no_layer_in_scope_is_reported_as_inert(bench: Bench) -> None:
    with bench.put({"int8_dynamic": {"edges": 2}}) as handle:
        assert handle.complaints() == {
            "int8_dynamic": "int8_dynamic quantized no layer at scope blocks, edges 2"
        }


@pytest.mark.parametrize("engine", ENGINES)
def test_either_kernel_draws_nearly_the_same_image(bench: Bench, engine: str) -> None:
    with bench.put({"int8_dynamic": {"engine": engine}}) as handle:
        image = bench.draw()
        assert handle.stats["int8_dynamic"]["engine"] == engine
    error = (image - bench.untouched).abs().mean() / bench.untouched.abs().mean()
    assert 0 < error < 0.05


def test_half_precision_on_a_cpu_is_refused_with_the_dtype(bench: Bench) -> None:
    workload = bench.case.workload.model_copy(update={"dtype": "bfloat16"})
    (said,) = PASS.missing(bench.case.model_copy(update={"workload": workload}))
    assert said == "int8_dynamic needs float32 on a CPU; this workload's dtype is bfloat16"
