"""Caches of diffusers on real small pipelines that name no branches, or have no cache of their own.

Each call of a step keeps its own state, and no name stays set after a forward.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from planner.case.case import Case
from planner.case.workload import Workload
from planner.errors import TrialFailed
from planner.hooks.branches import Hook, attach
from planner.hooks.clock import StepClock
from planner.passes import registry
from planner.passes.base import Context
from planner.plans.graph import build
from planner.plans.plan import Plan
from planner.prediction.trace import trace
from planner.run.apply import LeavesCaseWarning, put_on
from planner.run.pipeline import PipelineSource, case_of
from tests.cases import flux_case
from tests.passes.driving import shared_bench, traces
from tests.test_families import denoiser, randomly
from tests.tiny import CALL, _tokenizers, tiny_flux

FBC = Plan.of({"first_block_cache": {"threshold": 0.3}})
WIDE = Plan.of({"first_block_cache": {"threshold": 1.0}})


def case_for(pipe: Any, call: dict[str, Any], guidance: str) -> Case:
    source = PipelineSource(model="tests.test_contexts:made")
    workload = Workload.model_validate({"call": call, "guidance": guidance, "prompts": "0" * 64})
    return case_of(pipe, source, workload)


def draw(pipe: Any, **call: Any) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(0)
    drawn: torch.Tensor = pipe(
        prompt="a red circle", generator=generator, output_type="latent", **call
    ).images
    return drawn


class Names(Hook):
    """Notes the context that every forward runs in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str | None] = []

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        context = self.contexts._context
        self.seen.append(None if context is None else context.name)
        return args, kwargs


def named(module: Any) -> list[str]:
    """Name every context that is set on hooks inside a module."""
    from diffusers.hooks.hooks import StateManager

    hooks = [
        hook for part in module.modules() if "_diffusers_hook" in vars(part)
        for hook in part._diffusers_hook.hooks.values()
    ]  # fmt: skip
    managers = [value for hook in hooks for value in vars(hook).values()
                if isinstance(value, StateManager)]  # fmt: skip
    assert managers
    return [one._context.name for one in managers if one._context is not None]


@pytest.fixture(scope="module")
def kontext() -> tuple[Any, Case]:
    """A FluxKontextPipeline, which calls twice a step and names nothing, with its case."""
    from diffusers import FluxKontextPipeline

    pipe = FluxKontextPipeline(**tiny_flux().components)
    pipe.set_progress_bar_config(disable=True)
    return pipe, case_for(pipe, CALL | {"max_area": 64 * 64}, "sequential")


def test_unnamed_branches_are_cached_as_named_ones_are(kontext: tuple[Any, Case]) -> None:
    pipe, case = kontext
    assert case.model.traits.branches == ()
    assert build(case).why_not(FBC) is None
    bench = shared_bench()  # a FluxPipeline of the same weights, which names cond and uncond
    with put_on(bench.pipe, FBC, bench.case) as handle:
        expected = draw(bench.pipe)
        masks = [handle.stats["first_block_cache"][f"mask_{name}"] for name in ("cond", "uncond")]
    with put_on(pipe, FBC, case) as handle:
        found = draw(pipe)
        stats = handle.stats["first_block_cache"]
    assert torch.equal(found, expected) and "0" in str(masks[0])
    assert [stats["mask_single"], stats["mask_single_2"]] == masks
    assert traces(pipe.transformer) == []


def test_unnamed_branches_are_counted_as_two(kontext: tuple[Any, Case]) -> None:
    pipe, case = kontext
    work, named = trace(pipe, case.workload), shared_bench().work
    assert work.forwards == named.forwards == 20
    branches = [phase.branch for phase in work.phases if phase.name == "denoise"]
    assert branches == [None, "single_2"]
    seen = {branch or "single" for branch in branches}
    assert seen == {name.removeprefix("mask_") for name in _masks_under(pipe, case)}


def _masks_under(pipe: Any, case: Case) -> list[str]:
    with put_on(pipe, FBC, case) as handle:
        draw(pipe)
        return [name for name in handle.stats["first_block_cache"] if name.startswith("mask_")]


def test_an_exception_in_a_forward_leaves_no_name_set(kontext: tuple[Any, Case]) -> None:
    pipe, case = kontext

    def stop(*_: Any) -> None:
        raise InterruptedError("in the middle of a forward")

    with put_on(pipe, FBC, case):
        expected = draw(pipe)
        hook = pipe.transformer.single_transformer_blocks[0].norm.register_forward_pre_hook(stop)
        with pytest.raises(InterruptedError):
            draw(pipe)
        hook.remove()
        assert named(pipe.transformer) == []
        assert torch.equal(draw(pipe), expected)


def test_names_that_the_pipeline_gives_stay() -> None:
    bench, names = shared_bench(), Names()
    with bench.put({"first_block_cache": {}}):
        module = bench.pipe.transformer
        detach = attach(module, module.transformer_blocks[0], names, "names")
        bench.draw()
        detach()
    assert names.seen == ["cond", "uncond"] * 10


@pytest.fixture(scope="module")
def pixart() -> tuple[Any, Case]:
    """A PixArtSigmaPipeline, whose denoiser has no cache of its own, with its case."""
    from diffusers import AutoencoderKL, DDIMScheduler, PixArtSigmaPipeline
    from diffusers import PixArtTransformer2DModel as Denoiser
    from transformers import T5Config, T5EncoderModel

    _, tokenizer = _tokenizers()
    transformer = randomly(lambda: Denoiser(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, num_layers=3, sample_size=8,
        cross_attention_dim=32, caption_channels=32, use_additional_conditions=False,
    ))  # fmt: skip
    pipe = PixArtSigmaPipeline(
        tokenizer=tokenizer, transformer=transformer,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        text_encoder=T5EncoderModel(T5Config(
            vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2,
        )).eval(),
        vae=AutoencoderKL(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4,
                          down_block_types=("DownEncoderBlock2D",) * 4,
                          up_block_types=("UpDecoderBlock2D",) * 4).eval(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    call = {"height": 64, "width": 64, "num_inference_steps": 10, "guidance_scale": 3.0,
            "max_sequence_length": 8, "use_resolution_binning": False,
            "clean_caption": False}  # fmt: skip
    return pipe, case_for(pipe, call, "batched")


def test_a_denoiser_without_enable_cache_is_cached_as_by_hand(pixart: tuple[Any, Case]) -> None:
    from diffusers.hooks import FirstBlockCacheConfig, HookRegistry, apply_first_block_cache
    from diffusers.models.cache_utils import CacheMixin

    pipe, case = pixart
    assert not hasattr(pipe.transformer, "enable_cache")
    assert build(case).why_not(WIDE) is None
    untouched = draw(pipe, **case.workload.call)
    with put_on(pipe, WIDE, case) as handle:
        found = draw(pipe)
        stats = handle.stats["first_block_cache"]
        assert torch.equal(draw(pipe), found)
    assert 0 < str(stats["mask_single"]).count("0") == stats["reused"]
    assert "mask_single_2" not in stats and not torch.equal(found, untouched)
    assert traces(pipe.transformer) == []

    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold=1.0))
    with CacheMixin.cache_context(pipe.transformer, "by hand"):
        by_hand = draw(pipe, **case.workload.call)
    with pytest.raises(TrialFailed, match="already exists"):
        put_on(pipe, WIDE, case)
    hooked = [block for block in pipe.transformer.transformer_blocks if traces(block)]
    assert len(hooked) == 3, "a cache that was there before was taken off"
    for block in hooked:
        for name in tuple(block._diffusers_hook.hooks):
            HookRegistry.check_if_exists_or_initialize(block).remove_hook(name)
    assert torch.equal(found, by_hand)


def test_batched_guidance_is_one_call_a_step_and_one_state() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline(
        transformer=denoiser("SD3Transformer2DModel")[0], vae=tiny_flux().vae,
        scheduler=FlowMatchEulerDiscreteScheduler(), text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    texts = {name: torch.randn(1, 8, 32) for name in ("prompt_embeds", "negative_prompt_embeds")}
    texts |= {f"{kind}pooled_prompt_embeds": torch.randn(1, 32) for kind in ("", "negative_")}
    call = {"height": 64, "width": 64, "num_inference_steps": 10, "guidance_scale": 3.0}
    case = case_for(pipe, call, "batched")
    assert "do not" in build(case).excluded["first_block_cache"]
    with put_on(pipe, Plan.of({"taylor_seer": {}}), case) as handle:
        with pytest.warns(LeavesCaseWarning, match="prompt_embeds"):
            drawn = pipe(output_type="latent", **texts).images
        stats = handle.stats["taylor_seer"]
    assert torch.isfinite(drawn).all() and traces(pipe.transformer) == []
    assert "0" in str(stats["mask_single"]) and "mask_single_2" not in stats


@pytest.fixture
def cached() -> Any:
    """A small Flux outside any pipeline under the widest threshold, its clock and its counters."""
    module, call = denoiser("FluxTransformer2DModel")
    clock = StepClock()
    scheduler = SimpleNamespace(step=lambda: None, timesteps=[4, 3, 2, 1, 0])
    detach = clock.attach(scheduler)
    context = Context(flux_case(), clock)
    one = registry.get("first_block_cache")
    undo = one.apply(SimpleNamespace(transformer=module), one.settings(threshold=10.0), context)
    yield SimpleNamespace(call=call, clock=clock, step=scheduler.step, stats=context.statistics,
                          module=module, scheduler=scheduler)  # fmt: skip
    undo()
    detach()
    assert traces(module) == []


def test_a_branch_that_resumes_after_a_gap_starts_afresh(cached: Any) -> None:
    with cached.clock.call():
        for calls in (2, 2, 1, 1, 2):  # an interval of guidance leaves out the second branch
            for _ in range(calls):
                cached.call()
            cached.scheduler.step()
    assert (cached.stats["mask_single"], cached.stats["mask_single_2"]) == ("10000", "10--1")


def test_outside_a_pipeline_call_nothing_is_reused(cached: Any) -> None:
    from planner.hooks.beneath import beneath_hooks, own_forward

    ran = []
    last = cached.module.single_transformer_blocks[-1]
    inner = own_forward(last)
    undo = beneath_hooks(last, lambda *a, **k: ran.append(1) or inner(*a, **k))
    outputs = [cached.call() for _ in range(3)]
    undo()
    assert len(ran) == 3 and all(torch.equal(one, outputs[0]) for one in outputs)
    assert cached.stats == {} and named(cached.module) == []
