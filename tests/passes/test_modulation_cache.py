"""Modulation that is made once for a conditioning, and looked up by what that holds."""

from typing import Any

import pytest
import torch

from planner.hooks.contents import Contents, content_of, sampled
from planner.hooks.modules import places
from planner.passes import registry
from planner.passes.caching.modulation_cache import FED, _parts
from planner.plans.graph import build
from planner.plans.plan import Plan
from planner.run.apply import put_on
from tests.cases import TRAITS, flux_case
from tests.passes.driving import Bench, traces
from tests.passes.parts import Products, flops, put_inside, said
from tests.test_families import FAMILIES, denoiser

PASS = registry.get("modulation_cache")
KNOWN = {
    "FluxTransformer2DModel", "SD3Transformer2DModel", "HunyuanVideoTransformer3DModel",
    "MochiTransformer3DModel", "CogVideoXTransformer3DModel", "QwenImageTransformer2DModel",
    "ZImageTransformer2DModel",
}  # fmt: skip


def test_what_was_made_in_an_earlier_call_is_given_again_to_the_bit(bench: Bench) -> None:
    untouched = bench.untouched
    with bench.put({"modulation_cache": {}}) as handle:
        for reused, prompt in ((0, "a red circle"), (20, "a red circle"), (10, "two blue star")):
            drawn = bench.draw(prompt)
            found = handle.stats["modulation_cache"]
            assert found["reused"] == reused and found["computed"] == 20 - reused
        assert torch.equal(bench.draw(), untouched)
        assert found["mask_uncond"] == "0" * 10 and found["mask_cond"] == "1" * 10
    assert torch.equal(drawn, bench.draw("two blue star"))


def test_the_effect_spares_what_a_new_prompt_really_spares(bench: Bench) -> None:
    untouched = flops(bench)
    with bench.put({"modulation_cache": {"memory": 1}}) as handle:
        bench.draw("two blue star")
        spared = untouched - flops(bench)
        held = int(handle.stats["modulation_cache"]["kept_bytes"] or 0)
    after = PASS.effect(bench.work, PASS.settings(memory=1), None)
    assert spared == pytest.approx(said(bench.work) - said(after), rel=1e-6) and spared > 0
    assert 0 < held <= after.kept == 2**20  # more prompts fill what is allowed


def test_branches_that_share_the_conditioning_share_what_is_kept(bench: Bench) -> None:
    """The names of Qwen-Image's blocks, on the operations of a Flux."""
    names = {"norm1": "img_mod", "norm1_context": "txt_mod", "norm": "img_mod"}

    def renamed(op: Any) -> Any:
        parts = op.path.split(".")
        if len(parts) < 3 or parts[2] not in names or op.kind != "linear":
            return op
        return op.model_copy(update={"path": ".".join([*parts[:2], names[parts[2]]])})

    work = bench.work.mapped(lambda phase: phase.mapped(renamed))
    after = PASS.effect(work, PASS.settings(), None)
    left = {op.share for phase in after.phases for op in phase.operations if "_mod" in op.path}
    assert left == {0.0}
    with bench.put({"modulation_cache": {}}) as handle:
        bench.draw()
        both = int(handle.stats["modulation_cache"]["kept_bytes"] or 0)
    # Ten steps of one branch; what the layers read is counted with what they write.
    assert both / 2 <= after.kept <= both / 2 * 4 / 3


def test_a_call_that_does_not_fit_gains_nothing_and_says_so(bench: Bench) -> None:
    held = Contents()
    held.most = 100.0
    row = torch.zeros(16)  # 64 bytes
    assert held.add("a", 0, [row]) == 0 and held.add("b", 0, [row]) == 1
    assert len(held) == 1 and held.bytes == 64 and held.rows("b") == {0: (row,)}
    assert held.add("c", 0, [row, row]) == 2 and held.bytes == 0
    held.of("other weights")
    assert len(held) == 0
    assert PASS.observe is not None
    statistics = {"computed": 20, "reused": 0, "dropped": 7}
    said_ = PASS.observe(PASS.settings(memory=1), statistics, bench.case.workload)
    assert said_ == "modulation_cache reused none of 20 forwards at memory 1"
    large = bench.work.mapped(lambda phase: phase.mapped(
        lambda op: op.model_copy(update={"bytes": op.bytes * 1e4, "weights": op.weights * 1e4})
    ))  # fmt: skip
    assert said(PASS.effect(large, PASS.settings(memory=1), None)) == said(large)


# Mochi asks for autocast in float32, which a CPU has not: it says so and computes in float32.
@pytest.mark.filterwarnings("ignore:In CPU autocast")
@pytest.mark.parametrize("name", sorted(KNOWN))
def test_every_known_family_gives_bit_equal_outputs_without_its_modulation_layers(
    name: str,
) -> None:
    module, call = denoiser(name)
    times = [1.0, 0.5, 1.0]

    def later(_: Any, args: Any, kwargs: Any) -> Any:
        key = "timestep" if "timestep" in kwargs else "t"
        return args, kwargs | {key: kwargs[key] * times[0]}

    shift = module.register_forward_pre_hook(later, with_kwargs=True)
    expected = {}
    for times[0] in (1.0, 0.5):
        expected[times[0]] = call()
    assert not torch.equal(expected[1.0], expected[0.5])
    parts = [place.block.get_submodule(path) for place in places(module, _parts)
             for path in place.parts]  # fmt: skip
    layers = [one if isinstance(one, torch.nn.Linear) else one[-1] for one in parts]
    with put_inside(module, 9, {"modulation_cache": {}}) as (_, step):
        for times[0], new in ((1.0, True), (0.5, True), (1.0, False), (0.5, False)):
            with Products() as counted:
                assert torch.equal(call(), expected[times[0]])
            assert counted.ran(layers) == (len(layers) if new else 0)
            step()
    shift.remove()
    assert len(layers) >= 3 and traces(module) == []


def test_blocks_that_are_known_are_those_of_the_families_that_are_tested() -> None:
    classes = {type(block).__name__ for name in KNOWN for block in denoiser(name)[0].modules()}
    assert set(FED) <= classes
    assert all(not _parts("", block) for name in set(FAMILIES) - KNOWN
               for block in denoiser(name)[0].modules())  # fmt: skip


def test_a_block_that_is_handed_another_tensor_computes(bench: Bench) -> None:
    """A tensor of equal content would be another comparison, so that it is not looked up."""
    block, untouched = bench.pipe.transformer.single_transformer_blocks[1], bench.untouched
    other = block.register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | {"temb": kwargs["temb"].clone()}), with_kwargs=True
    )
    with bench.put({"modulation_cache": {}}):
        bench.draw()
        with Products() as counted:
            assert torch.equal(bench.draw(), untouched)
        own = [block.norm.linear]
        every = [bench.pipe.transformer.transformer_blocks[0].norm1.linear]
        assert counted.ran(own) == 1 and counted.ran(every) == 0
    other.remove()


def test_changed_weights_are_noticed_also_where_torch_counts_no_change(bench: Bench) -> None:
    weight = bench.pipe.transformer.transformer_blocks[0].norm1.linear.weight
    untouched = bench.untouched
    with bench.put({"modulation_cache": {}}) as handle:
        for change in (lambda: weight.mul_(1.5), lambda: weight.data.add_(0.1)):
            bench.draw()
            before = weight.detach().clone()
            with torch.no_grad():
                change()
            drawn = bench.draw()
            assert handle.stats["modulation_cache"]["reused"] == 0
            with handle.suspended():
                assert torch.equal(bench.draw(), drawn)
                assert not torch.equal(drawn, untouched)
                weight.data.copy_(before)
    assert torch.equal(bench.draw(), untouched)


def test_what_tells_contents_and_weights_apart() -> None:
    one = torch.tensor([0.0, 1.0], dtype=torch.bfloat16)
    assert content_of(one) == content_of(one.clone())
    for other in (one.float(), one[None], -one, torch.tensor([0.0, 2.0]).bfloat16()):
        assert content_of(other) != content_of(one)
    plain = content_of(one)
    with torch.autocast("cpu", torch.bfloat16):
        assert content_of(one) != plain
    layer = torch.nn.Linear(8, 8)
    known = sampled([layer])
    for weight in layer.parameters():
        weight.data = weight.data.clone()  # as where it moved to another device and back
    assert sampled([layer]) == known != sampled([torch.nn.Linear(8, 8)])


def test_what_is_kept_survives_a_suspension_and_goes_with_the_plan(bench: Bench) -> None:
    plan = Plan.of({"modulation_cache": {}})
    with put_on(bench.pipe, plan, bench.case) as handle:
        drawn = bench.draw()
        with handle.suspended():
            assert torch.equal(bench.draw(), drawn)
        bench.draw()
        assert handle.stats["modulation_cache"]["reused"] == 20
    with put_on(bench.pipe, plan, bench.case) as handle:
        bench.draw()
        assert handle.stats["modulation_cache"]["reused"] == 0


def test_another_layer_in_place_of_a_linear_one_is_kept_as_well(bench: Bench) -> None:
    """As where a library put a quantized layer there."""
    norm, untouched = bench.pipe.transformer.transformer_blocks[0].norm1, bench.untouched

    class Halved(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.inner(x) / 2
            return out

    own, norm.linear = norm.linear, Halved(norm.linear)
    expected = bench.draw()
    with bench.put({"modulation_cache": {}}):
        bench.draw()
        with Products() as counted:
            assert torch.equal(bench.draw(), expected)
        assert counted.ran([own]) == 0
    norm.linear = own
    assert not torch.equal(expected, untouched)


def test_a_cache_that_looks_at_the_first_norm_sees_its_own_step(bench: Bench) -> None:
    plan = {"tea_cache": {"threshold": 0.3, "start": 0.0}}
    with bench.put(plan) as handle:
        expected = bench.draw()
        mask = handle.stats["tea_cache"]["mask_cond"]
    with bench.put(plan | {"modulation_cache": {}}) as handle:
        for _ in range(2):
            assert torch.equal(bench.draw(), expected)
        assert handle.stats["tea_cache"]["mask_cond"] == mask and "0" in str(mask)
        assert handle.stats["modulation_cache"]["reused"]


def test_compiled_blocks_stay_whole_and_give_the_same(captures: dict[str, Any]) -> None:
    module, call = denoiser("QwenImageTransformer2DModel")
    untouched = call()
    with put_inside(module, 9, {"modulation_cache": {}, "compile_blocks": {}}) as (found, step):
        for _ in range(4):
            assert torch.allclose(call(), untouched, rtol=1e-4, atol=1e-5)
            step()
        assert found["modulation_cache"]["mask_single"] == "1000"
    # One graph that makes the modulation, one that is given it.
    assert captures["stats"]["unique_graphs"] == 2 and not captures["graph_break"]


def test_where_it_cannot_help_or_act_it_is_refused_with_reasons() -> None:
    said_ = build(flux_case(guidance="embedded")).excluded["modulation_cache"]
    assert said_.startswith(
        "modulation_cache needs conditioning that comes again; that of FluxTransformerBlock holds "
        "the prompt, and guidance is embedded"
    )
    qwen = TRAITS.model_copy(update={"block_classes": ("QwenImageTransformerBlock",)})
    assert "modulation_cache" not in build(flux_case(guidance="none", traits=qwen)).excluded
    wan = TRAITS.model_copy(update={"block_classes": ("WanTransformerBlock",)})
    assert "of WanTransformerBlock that is not known" in PASS.missing(flux_case(traits=wan))[0]
