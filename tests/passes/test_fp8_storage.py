"""Weights that lie in eight bits."""

import re
from typing import Any

import pytest
import torch

from planner.passes import registry
from planner.passes.memory.fp8_storage import SKIPPED
from planner.plans.graph import build
from planner.plans.plan import Plan
from tests.passes.driving import Bench, declared_bench
from tests.passes.gpus import heavy_work, on_gpu

PASS = registry.get("fp8_storage")


def settings(**values: Any) -> Any:
    """Return settings with these values."""
    return registry.settings_of("fp8_storage", values)


def test_layers_lie_in_a_byte_and_norms_do_not(bench: Bench) -> None:
    with declared_bench().put({"fp8_storage": {}}) as handle:
        bench.draw()
        stored = {name: weight.dtype for name, weight in bench.pipe.transformer.named_parameters()}
        assert stored["transformer_blocks.0.attn.to_q.weight"] == torch.float8_e4m3fn
        assert all(dtype == torch.float32 for name, dtype in stored.items() if "norm" in name)
        cast = {name for name, dtype in stored.items() if dtype == torch.float8_e4m3fn}
        assert handle.stats["fp8_storage"]["weights"] == len(cast)
    linear = [name for name, module in bench.pipe.transformer.named_modules()
              if isinstance(module, torch.nn.Linear)]  # fmt: skip
    priced = {name for name in linear if not any(re.search(one, name) for one in SKIPPED)}
    assert {name.removesuffix(".weight") for name in cast if name.endswith("weight")} == priced


def test_what_is_left_alone_is_what_diffusers_leaves_alone() -> None:
    from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN

    assert SKIPPED == DEFAULT_SKIP_MODULES_PATTERN


def test_patterns_leave_more_layers_alone(bench: Bench) -> None:
    with declared_bench().put({"fp8_storage": {"skip": r"\.attn\., ff"}}):
        stored = dict(bench.pipe.transformer.named_parameters())
        assert stored["transformer_blocks.0.attn.to_q.weight"].dtype == torch.float32
        assert stored["context_embedder.weight"].dtype == torch.float8_e4m3fn


def test_the_very_weights_come_back_also_under_group_offload(bench: Bench) -> None:
    before = {n: w.clone() for n, w in bench.pipe.transformer.named_parameters()}
    untouched = bench.draw()
    with declared_bench().put({"fp8_storage": {}}):
        alone = bench.draw()
    with declared_bench().put({"fp8_storage": {}, "group_offload": {"stream": False}}):
        assert torch.equal(bench.draw(), alone)
    assert not torch.equal(alone, untouched)
    after = dict(bench.pipe.transformer.named_parameters())
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_stored_weights_take_half_and_casts_are_paid_for() -> None:
    after = PASS.effect(heavy_work(), settings(), None)
    assert after.parts[1].bytes == 500 - 4 * 50  # norm_out keeps its precision
    product, cast = after.phases[1].operations[0], after.phases[1].operations[-1]
    assert (product.weights, product.bytes) == (50, 150)
    assert (cast.kind, cast.flops, cast.bytes, cast.launches) == ("elementwise", 0, 350, 2)
    assert after.flops == heavy_work().flops
    kept = PASS.effect(heavy_work(), settings(skip="attn"), None)
    assert kept.phases == heavy_work().phases


def test_the_effect_counts_the_bytes_that_weights_really_take(bench: Bench) -> None:
    after = PASS.effect(bench.work, settings(), None)
    (part,) = (part for part in after.parts if part.phase == "denoise")
    with declared_bench().put({"fp8_storage": {}}):
        real = sum(weight.nbytes for weight in bench.pipe.transformer.parameters())
    assert part.bytes == pytest.approx(real, rel=0.02)


def test_a_part_of_unknown_weights_takes_a_byte_a_parameter() -> None:
    bare = heavy_work().model_copy(update={"phases": heavy_work().phases[:1]})
    assert PASS.effect(bare, settings(), None) == bare
    work = heavy_work()
    blind = work.mapped(lambda phase: phase.model_copy(update={"operations": ()}))
    assert PASS.effect(blind, settings(), None).parts[1].bytes == 250


@pytest.mark.parametrize(("other", "said"), [
    ("int8_dynamic", "both own denoiser.linear_precision"), ("cuda_graphs", "new memory"),
])  # fmt: skip
def test_what_needs_the_weights_as_they_are_is_refused(other: str, said: str) -> None:
    why = build(on_gpu()).why_not(Plan.of({"fp8_storage": {}, other: {}}))
    assert why is not None and said in why


def test_a_pattern_that_cannot_be_read_and_loose_adapters_are_refused(bench: Bench) -> None:
    why = build(on_gpu()).why_not(Plan.of({"fp8_storage": {"skip": "ff("}}))
    assert why is not None and "fp8_storage.skip holds 'ff('" in why
    case = on_gpu()
    styled = case.model.model_copy(update={"adapters": ("transformer:style",)})
    assert PASS.missing(case.model_copy(update={"model": styled})) == (
        "fp8_storage needs adapters fused; loaded are transformer:style",
    )
    assert PASS.missing(bench.case)[0].startswith("fp8_storage needs a CUDA device")
