"""DeepCache: what runs in a skipped step, and what it is given."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from planner.hooks.clock import StepClock
from planner.passes import registry
from planner.passes.base import Context
from planner.passes.caching.deep_cache import DeepCacheSettings, apply, runs
from planner.plans.graph import build
from planner.plans.plan import Plan
from tests.passes.driving import Bench, leftovers, unet_bench

PASS = registry.get("deep_cache")
SHALLOW = {
    1: {"up_blocks.2.resnets.1"},
    2: {"up_blocks.2.resnets.1", "up_blocks.2.resnets.0", "down_blocks.0.resnets.0"},
}  # fmt: skip
"""What runs in a skipped step, by layers of the last up block."""


@pytest.fixture
def bench() -> Iterator[Bench]:
    """The bench with a U-Net, which must be as untouched after the test as before it."""
    yield unet_bench()
    assert leftovers(unet_bench().pipe) == []


class Watched:
    """Keeps, per forward, the layers that ran and what the first one behind the cut was given."""

    def __init__(self, unet: Any, layers: int) -> None:
        self.ran: list[set[str]] = []
        self.given: list[torch.Tensor] = []
        self._hooks = [unet.conv_in.register_forward_pre_hook(lambda *_: self.ran.append(set()))]
        for path, module in unet.named_modules():
            inside = {"ResnetBlock2D": "conv1", "Transformer2DModel": "norm"}
            if name := inside.get(type(module).__name__):
                self._hooks.append(getattr(module, name).register_forward_pre_hook(
                    lambda *_, path=path: self.ran[-1].add(path)
                ))  # fmt: skip
        behind = unet.up_blocks[-1].resnets[-layers]
        self._skip = behind.in_channels - (16 if layers == 2 else 8)  # channels of the feature
        self._hooks.append(behind.register_forward_pre_hook(self._give))

    def _give(self, module: Any, args: Any) -> None:
        self.given.append(args[0][:, : -self._skip])

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()


def test_the_first_steps_run_whole_and_then_every_so_many() -> None:
    settings = DeepCacheSettings(interval=3)
    assert [step for step in range(10) if runs(settings, step)] == [0, 3, 6, 9]
    later = DeepCacheSettings(interval=4, first=3)
    assert [step for step in range(12) if runs(later, step)] == [0, 1, 2, 6, 10]


@pytest.mark.parametrize("layers", [1, 2])
def test_a_skipped_step_runs_the_outermost_layers_around_the_last_full_steps_feature(
    bench: Bench, layers: int
) -> None:
    with bench.put({"deep_cache": {"interval": 3, "layers": layers}}) as handle:
        watched = Watched(bench.pipe.unet, layers)
        image = bench.draw()
        watched.stop()
        found = handle.stats["deep_cache"]
    assert found["mask_single"] == "1001001001"
    assert found["computed"] == 4 and found["reused"] == 6 and found["hit_rate"] == 0.6
    assert [ran == SHALLOW[layers] for ran in watched.ran] == [step % 3 > 0 for step in range(10)]
    assert all(len(watched.ran[step]) == 18 for step in (0, 3, 6, 9))
    for step, given in enumerate(watched.given):
        assert torch.equal(given, watched.given[step - step % 3])
    assert not torch.equal(watched.given[0], watched.given[3])
    assert torch.isfinite(image).all() and not torch.equal(image, bench.untouched)


def test_more_layers_than_the_block_has_are_all_of_them(bench: Bench) -> None:
    with bench.put({"deep_cache": {"layers": 2}}):
        expected = bench.draw()
    with bench.put({"deep_cache": {"layers": 3}}):
        assert torch.equal(bench.draw(), expected)
    works = [PASS.effect(bench.work, DeepCacheSettings(layers=layers), None) for layers in (2, 3)]
    assert works[0] == works[1]


def test_an_interval_of_one_changes_nothing_and_is_inert(bench: Bench) -> None:
    untouched = bench.untouched
    with bench.put({"deep_cache": {"interval": 1}}) as handle:
        assert torch.equal(bench.draw(), untouched)
        assert handle.complaints() == {
            "deep_cache": "deep_cache reused none of 10 forwards at interval 1"
        }


@pytest.mark.parametrize("layers", [1, 2])
def test_what_the_effect_says_is_what_runs(bench: Bench, layers: int) -> None:
    values = {"interval": 4, "first": 2, "layers": layers}
    after = PASS.effect(bench.work, DeepCacheSettings(**values), None)
    assert after.computed_forwards == pytest.approx(4) and after.forwards == 10
    shares = {op.path: op.share for op in after.phases[1].operations if ".resnets." in op.path}
    assert {path for path, share in shares.items() if share == 1} == SHALLOW[layers]
    assert {share for path, share in shares.items() if path not in SHALLOW[layers]} == {0.4}
    with bench.put({"deep_cache": values}) as handle:
        watched = Watched(bench.pipe.unet, layers)
        bench.draw()
        watched.stop()
        assert handle.stats["deep_cache"]["mask_single"] == "1100010001"
    held = watched.given[0].nbytes
    assert after.kept == pytest.approx(held, rel=0.01)


def test_guidance_that_ends_within_a_call_makes_that_step_a_full_one(bench: Bench) -> None:
    taken = ("prompt_embeds", "add_text_embeds", "add_time_ids")

    def end(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        tensors = _[-1]
        if step == 4:
            pipe._guidance_scale = 0.0
            return {name: tensors[name].chunk(2)[-1] for name in taken}
        return {}

    with bench.put({"deep_cache": {"interval": 4}}) as handle:
        bench.draw(callback_on_step_end=end, callback_on_step_end_tensor_inputs=list(taken))
        assert handle.stats["deep_cache"]["mask_single"] == "1000110010"
        again = bench.draw()
        assert torch.equal(again, bench.draw())


KINDS = (
    ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnDownBlock2D", "DownBlock2D"),
    ("SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
)  # fmt: skip


def a_unet(
    kinds: tuple[str, str], height: int = 8, width: int = 8
) -> tuple[Any, dict[str, Any]]:
    """A U-Net of two stages, and what it is called with."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    ups = tuple(kind.replace("Down", "Up", 1).replace("Down", "Up").replace("down", "up")
                for kind in reversed(kinds))  # fmt: skip
    simple = kinds[0].startswith("Simple")
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=32,
        down_block_types=kinds, up_block_types=ups, attention_head_dim=4,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn" if simple else "UNetMidBlock2DCrossAttn",
    )  # fmt: skip
    given = {"sample": torch.randn(1, 4, height, width), "timestep": torch.tensor(5),
             "encoder_hidden_states": torch.randn(1, 8, 32)}  # fmt: skip
    return unet.eval().requires_grad_(False), given


@pytest.mark.parametrize(("kinds", "way"), [
    *((kinds, way) for kinds in KINDS for way in ("", "FreeU")),
    *((kinds, "halved unevenly") for kinds in KINDS[:2]),  # resnets that sample up cannot
], ids=str)  # fmt: skip
@pytest.mark.parametrize("layers", [1, 2])
def test_at_unchanged_latents_a_skipped_step_is_the_full_one(
    kinds: tuple[str, str], way: str, layers: int
) -> None:
    unet, given = a_unet(kinds, *((7, 9) if way == "halved unevenly" else ()))
    if way == "FreeU":
        unet.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)
    clock, seen = StepClock(), {}
    context = Context(case=unet_bench().case, clock=clock, statistics=seen)
    expected = unet(**given).sample
    settings = DeepCacheSettings(interval=3, layers=layers)
    undo = apply(SimpleNamespace(unet=unet), settings, context)
    for _ in range(2):
        with clock.call():
            for clock.step in range(3):
                assert torch.equal(unet(**given).sample, expected)
        assert seen["mask_single"] == "100"
    assert torch.equal(unet(**given).sample, expected), "outside a call nothing is reused"
    assert seen["computed"] + seen["reused"] == 3
    undo()


def test_what_is_added_inside_makes_every_step_a_full_one() -> None:
    unet, given = a_unet(KINDS[0])
    clock, seen = StepClock(), {}
    context = Context(case=unet_bench().case, clock=clock, statistics=seen)
    added = {"down_block_additional_residuals": [torch.ones(())] * 4,
             "mid_block_additional_residual": torch.ones(())}  # fmt: skip
    undo = apply(SimpleNamespace(unet=unet), DeepCacheSettings(interval=3), context)
    with clock.call():
        for clock.step in range(3):
            unet(**given, **added)
    undo()
    assert seen["mask_single"] == "111"


def test_where_it_cannot_work_is_said() -> None:
    case = unet_bench().case
    few = case.workload.model_copy(update={"call": {"num_inference_steps": 8}})
    (said,) = PASS.missing(case.model_copy(update={"workload": few}))
    assert said == "deep_cache needs at least 9 steps; this call has 8"
    for name in ("StableDiffusionXLControlNetPipeline", "StableDiffusionXLAdapterPipeline"):
        model = case.model.model_copy(update={"pipeline": name})
        (said,) = PASS.missing(case.model_copy(update={"model": model}))
        assert said == f"deep_cache needs blocks that nothing is added to; {name} adds to them"


def test_of_the_caches_of_block_stacks_a_u_net_has_this_one_alone() -> None:
    graph = build(unet_bench().case)
    caches = {one.name for one in graph.legal if "denoiser.step_reuse" in one.owns}
    assert caches == {"deep_cache", "easy_cache", "sea_cache", "step_mask"}
    why = graph.why_not(Plan.of({"step_mask": {"tensor": "residual"}}))
    assert "UNet2DConditionModel has none; forecast the output instead" in str(why)
    for name in ("taylor_seer", "mag_cache", "first_block_cache"):
        assert graph.excluded[name].startswith(
            f"{name} needs blocks that diffusers has registered; UNet2DConditionModel has none"
        )
