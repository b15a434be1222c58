"""Keys and values of the text, made once: exactly what they would have been at every step."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from planner.hooks.text import before_projections, text_projections
from planner.passes import registry
from planner.passes.base import NoSettings
from planner.plans.graph import build
from planner.plans.plan import Plan
from tests.passes.driving import H100, Bench, leftovers, shared_bench, traces, unet_bench
from tests.tiny import WAN_CALL, tiny_wan

PASS = registry.get("text_kv_cache")
PLAN: dict[str, Any] = {"text_kv_cache": {}}


@functools.cache
def wan_bench(experts: int = 1) -> Bench:
    """A bench with cross-attention whose branches are calls of their own."""
    return Bench(make=functools.partial(tiny_wan, experts), usual=WAN_CALL)


@pytest.fixture(params=[unet_bench, wan_bench], ids=["one batch", "two calls"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A bench with batched and one with sequential guidance, as untouched after as before."""
    found: Bench = request.param()
    yield found
    assert clean(found)


def clean(bench: Bench) -> bool:
    if bench is unet_bench():
        return leftovers(bench.pipe) == []
    names = ("transformer", "transformer_2")
    parts = [getattr(bench.pipe, name) for name in names if getattr(bench.pipe, name) is not None]
    return all(traces(part) == [] for part in parts)


@contextmanager
def projecting(denoiser: Any) -> Iterator[list[int]]:
    """Count the forwards of the projections' own weights."""
    ran: list[int] = [0]
    real = torch.nn.functional.linear
    weights = {id(module.weight) for module in text_projections(denoiser)}

    def linear(given: Any, weight: Any, *rest: Any) -> Any:
        ran[0] += id(weight) in weights
        return real(given, weight, *rest)

    torch.nn.functional.linear = linear
    try:
        yield ran
    finally:
        torch.nn.functional.linear = real


def denoiser_of(bench: Bench) -> Any:
    return getattr(bench.pipe, "unet", None) or bench.pipe.transformer


def test_a_whole_call_is_equal_bit_by_bit_and_projects_once_a_branch(bench: Bench) -> None:
    denoiser = denoiser_of(bench)
    layers = len(text_projections(denoiser))
    untouched, other = bench.untouched, bench.draw("two blue star", seed=3)
    with bench.put(PLAN) as handle, projecting(denoiser) as ran:
        assert torch.equal(bench.draw(), untouched)
        found = handle.stats["text_kv_cache"]
        branches = len(bench.case.model.traits.branches) or 1
        assert ran[0] == branches * layers > 0
        assert found["computed"] == branches
        assert found["reused"] == branches * (bench.case.workload.steps - 1)
        assert torch.equal(bench.draw("two blue star", seed=3), other), "another prompt"
        assert torch.equal(bench.draw(), untouched)
        assert ran[0] == 3 * branches * layers and handle.complaints() == {}


def test_after_an_exception_nothing_of_the_last_call_is_used(bench: Bench) -> None:
    def stop(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        raise InterruptedError

    untouched = bench.untouched
    with bench.put(PLAN):
        with pytest.raises(InterruptedError):
            bench.draw("two blue star", callback_on_step_end=stop)
        assert torch.equal(bench.draw(), untouched)


Change = Callable[[Bench, dict[str, Any]], dict[str, Any]]


def another_text(bench: Bench, tensors: dict[str, Any]) -> dict[str, Any]:
    return {"prompt_embeds": tensors["prompt_embeds"].flip(1)}


def a_written_text(bench: Bench, tensors: dict[str, Any]) -> dict[str, Any]:
    tensors["prompt_embeds"].mul_(0.5)
    return {}


def the_same_text_anew(bench: Bench, tensors: dict[str, Any]) -> dict[str, Any]:
    return {"prompt_embeds": tensors["prompt_embeds"].clone()}


def other_weights(bench: Bench, tensors: dict[str, Any]) -> dict[str, Any]:
    """Turn the weights that a Wan's text meets first, a U-Net's projections; back the next time."""
    denoiser = denoiser_of(bench)
    first = [part for module in before_projections(denoiser) for part in module.children()]
    for module in first or text_projections(denoiser):
        for weight in module.parameters():
            weight.neg_()
    return {}


@pytest.mark.parametrize(
    ("change", "again"),
    [(another_text, 1), (a_written_text, 1), (other_weights, 1), (the_same_text_anew, 0)],
)
def test_what_changes_in_the_middle_of_a_call_is_projected_anew(
    bench: Bench, change: Change, again: int
) -> None:
    def changed(pipe: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return change(bench, tensors) if step in (0, 2) else {}

    call: dict[str, Any] = {
        "callback_on_step_end": changed, "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }  # fmt: skip
    untouched, expected = bench.untouched, bench.draw(**call)
    with bench.put(PLAN) as handle:
        assert torch.equal(bench.draw(**call), expected)
        found = handle.stats["text_kv_cache"]
        mask = str(found.get("mask_single") or found["mask_cond"])
        steps = bench.case.workload.steps
        assert mask == ("1101" if again else "1000").ljust(steps, "0")
        assert torch.equal(bench.draw(), untouched)


class LowRank(torch.nn.Module):
    """A linear layer and an adapter beside it, whose state is named as PEFT names it."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_a = torch.nn.Linear(base.in_features, 2, bias=False)
        self.lora_b = torch.nn.Linear(2, base.out_features, bias=False)
        self.scaling = {"style": 1.0}

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        added = self.lora_b(self.lora_a(given)) * self.scaling["style"]
        out: torch.Tensor = self.base_layer(given) + added
        return out


def test_adapters_on_the_projections_count_and_so_does_their_scale() -> None:
    bench = Bench(make=tiny_wan, usual=WAN_CALL)
    plain = bench.draw()
    torch.manual_seed(1)
    for block in bench.pipe.transformer.blocks:
        block.attn2.to_k = LowRank(block.attn2.to_k)
    styled = bench.draw()

    def scale(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        for block in pipe.transformer.blocks:
            block.attn2.to_k.scaling["style"] = 1.0 + step
        return {}

    scaled = bench.draw(callback_on_step_end=scale)
    scale(bench.pipe, 0)
    with bench.put(PLAN) as handle:
        assert torch.equal(bench.draw(), styled) and not torch.equal(styled, plain)
        assert handle.stats["text_kv_cache"]["mask_cond"] == "1000"
        assert torch.equal(bench.draw(callback_on_step_end=scale), scaled)
        assert handle.stats["text_kv_cache"]["mask_cond"] == "1011"


def test_a_scale_that_the_call_gives_its_adapters_counts_as_well() -> None:
    def scale(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        pipe._cross_attention_kwargs = {"scale": 0.5} if step else None
        return {}

    with unet_bench().put(PLAN) as handle:
        unet_bench().draw(callback_on_step_end=scale)
        assert handle.stats["text_kv_cache"]["mask_single"] == "1010000000"


def test_hooks_on_the_projections_are_called_and_heard(bench: Bench) -> None:
    layer = text_projections(denoiser_of(bench))[0]
    doubled = layer.register_forward_hook(lambda module, args, out: out * 2)
    expected = bench.draw()
    with bench.put(PLAN):
        assert torch.equal(bench.draw(), expected)
    doubled.remove()
    assert not torch.equal(expected, bench.untouched)


class Writing:
    """An attention processor that writes into the keys it is given."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __call__(self, attn: Any, *args: Any, **kwargs: Any) -> Any:
        to_k = attn.to_k.forward
        attn.to_k.forward = lambda given: to_k(given).mul_(0.5)
        try:
            return self._real(attn, *args, **kwargs)
        finally:
            attn.to_k.forward = to_k


def test_what_writes_into_keys_does_not_write_into_what_is_kept() -> None:
    bench = Bench(make=tiny_wan, usual=WAN_CALL)
    for block in bench.pipe.transformer.blocks:
        block.attn2.processor = Writing(block.attn2.processor)
    expected = bench.draw()
    with bench.put(PLAN):
        assert torch.equal(bench.draw(), expected)


def test_fused_projections_are_kept_as_well() -> None:
    bench = Bench(make=tiny_wan, usual=WAN_CALL)
    bench.pipe.transformer.fuse_qkv_projections()
    expected = bench.draw()
    with bench.put(PLAN) as handle, projecting(bench.pipe.transformer) as ran:
        assert torch.equal(bench.draw(), expected)
        assert ran == [6] and handle.stats["text_kv_cache"]["reused"] == 6


def test_each_of_two_experts_projects_once() -> None:
    bench = wan_bench(experts=2)
    untouched = bench.untouched
    with bench.put(PLAN) as handle:
        assert torch.equal(bench.draw(), untouched)
        assert handle.stats["text_kv_cache"]["mask_uncond"] == "1100"
    assert clean(bench)


def test_a_step_cache_skips_beside_it_as_before() -> None:
    bench = unet_bench()
    with bench.put({"deep_cache": {"interval": 3}}):
        expected = bench.draw()
    with bench.put({"deep_cache": {"interval": 3}} | PLAN) as handle:
        assert torch.equal(bench.draw(), expected)
        assert handle.stats["deep_cache"]["mask_single"] == "1001001001"
        assert handle.stats["text_kv_cache"]["computed"] == 1


def test_the_effect_makes_and_holds_them_once_a_branch() -> None:
    bench = wan_bench()
    after = PASS.effect(bench.work, NoSettings(), None)
    shares = {op.path.rpartition(".")[2]: op.share for op in after.phases[1].operations
              if ".attn2" in op.path}  # fmt: skip
    assert shares["to_k"] == shares["to_v"] == 1 / 4 and shares["attn2"] == 1
    width, text, kinds, blocks, branches = 32, 8, 2, 3, 2
    assert after.kept == pytest.approx(4 * width * text * kinds * blocks * branches)
    made = 2 * text * width * width * kinds * blocks  # two FLOPs a weight and token
    assert bench.work.flops - after.flops == pytest.approx(made * branches * 3, rel=0.05)


def test_where_it_cannot_work_is_said() -> None:
    (said,) = PASS.missing(shared_bench().case)
    assert said.endswith("in every block; FluxTransformer2DModel is not")


def test_beside_graphs_that_are_replayed_it_is_refused() -> None:
    graph = build(unet_bench().case.model_copy(update={"device": H100}))
    assert {"deep_cache", "text_kv_cache", "cuda_graphs"} <= {one.name for one in graph.legal}
    why = graph.why_not(Plan.of({"text_kv_cache": {}, "cuda_graphs": {}}))
    assert why is not None and "a replay would read the keys and values" in why
