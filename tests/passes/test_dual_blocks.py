"""cache-dit's blocks in place of a denoiser's own, against cache-dit put on by its own means.

A real small denoiser of every family that the pass takes; the library's own way of putting itself
on is the reference, so that its users find the images that they have.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch.utils._pytree import tree_map

from planner.errors import UsageError
from planner.hooks.clock import StepClock
from planner.hooks.dual_blocks import DENOISERS, listed
from planner.passes.base import Context
from planner.passes.caching.dual_block_cache import DualBlockCacheSettings
from planner.prediction.inputs import Asked, builder_for
from planner.prediction.latents import Latent
from tests.passes.driving import Bench, declared_bench, traces
from tests.passes.test_dual_block_cache import NAME, PASS, plan, settings
from tests.test_families import FAMILIES, FRAMES, HEADS, counted, randomly

MORE: dict[str, dict[str, Any]] = {
    "SanaTransformer2DModel": HEADS | {
        "in_channels": 4, "out_channels": 4, "num_layers": 3, "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 32,
        "sample_size": 8,
    },
    "HunyuanVideo15Transformer3DModel": HEADS | {
        "in_channels": 4, "out_channels": 4, "num_layers": 3, "num_refiner_layers": 1,
        "text_embed_dim": 32, "text_embed_2_dim": 32, "image_embed_dim": 32,
        "rope_axes_dim": (4, 6, 6),
    },
}  # fmt: skip
"""Small denoisers whose blocks cache-dit knows and diffusers has not registered."""


def by_hand(one: DualBlockCacheSettings, steps: int, apart: bool) -> dict[str, Any]:
    """The same settings as cache-dit's own configurations."""
    import cache_dit

    mask = None if one.mask == "none" else cache_dit.steps_mask(
        mask_policy=one.mask, total_steps=steps)  # fmt: skip
    calibrators: dict[str, Any] = {
        "taylorseer": cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=one.order),
        "dmd": cache_dit.DMDCalibratorConfig(), "foca": cache_dit.FoCaCalibratorConfig(),
    }  # fmt: skip
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=one.fn, Bn_compute_blocks=one.bn, max_warmup_steps=one.warmup,
        residual_diff_threshold=one.threshold, max_continuous_cached_steps=one.most or -1,
        enable_separate_cfg=apart, num_inference_steps=steps, steps_computation_mask=mask,
        steps_computation_policy=one.policy,
    )  # fmt: skip
    return {"cache_config": config, "calibrator_config": calibrators.get(one.calibrator)}


@contextmanager
def enabled(target: Any, denoiser: Any, **configs: Any) -> Iterator[None]:
    """cache-dit as its users put it on, and what it leaves behind taken away by hand."""
    import cache_dit

    children = dict(denoiser._modules)
    cache_dit.enable_cache(target, **configs)
    yield
    cache_dit.disable_cache(target)
    # It leaves the forward that it had rewritten, marks on denoiser and stand-in pipeline, and
    # the lists that it took as the denoiser's last children.
    denoiser._modules.clear()
    denoiser._modules.update(children)
    for name in ("forward", "_is_patched"):
        vars(denoiser).pop(name, None)
    if "_is_cached" in vars(cache_dit.caching.FakeDiffusionPipeline):
        del cache_dit.caching.FakeDiffusionPipeline._is_cached


@pytest.mark.parametrize("values", [
    {"fn": 1}, {"fn": 2, "bn": 1, "most": 1}, {"threshold": 0.6, "mask": "fast"},
    {"calibrator": "taylorseer", "order": 2, "mask": "ultra", "policy": "static"},
    {"calibrator": "dmd"}, {"calibrator": "foca", "mask": "fast", "policy": "static"},
], ids=lambda values: " ".join(map(str, values.values())))  # fmt: skip
def test_images_and_counts_are_those_of_cache_dit_enabled_by_hand(
    bench: Bench, values: dict[str, Any]
) -> None:
    import cache_dit

    one = settings(**values)
    with enabled(bench.pipe, bench.pipe.transformer, **by_hand(one, 10, apart=True)):
        expected = bench.draw()
        said = cache_dit.summary(bench.pipe, logging=False)[0]
    with bench.put({NAME: one.model_dump()}) as handle:
        assert torch.equal(bench.draw(), expected)
        stats = handle.stats[NAME]
    reused = [[step for step, one in enumerate(str(stats[f"mask_{branch}"])) if one == "0"]
              for branch in ("cond", "uncond")]  # fmt: skip
    assert reused == [said.cached_steps, said.cfg_cached_steps] and all(reused)
    assert stats["reused"] == sum(map(len, reused)) == 20 - int(stats["computed"])


def small(name: str) -> tuple[Any, Callable[[int], torch.Tensor]]:
    """A small denoiser, and a call of it at a step: the latents change a little each time."""
    module = randomly(lambda: getattr(diffusers, name)(**(FAMILIES | MORE)[name]))
    latent = Latent(frames=FRAMES.get(name, 1), height=8, width=8)
    asked = Asked(module.config, latent, text=8, batch=1, dtype=torch.float32)

    def real(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        whole = torch.ones(value.shape, dtype=value.dtype)
        return torch.randn(value.shape) if value.is_floating_point() else whole

    arguments = tree_map(real, builder_for(name).arguments(asked))
    noisy = next(key for key in ("hidden_states", "x") if key in arguments)

    def call(step: int) -> torch.Tensor:
        given = tree_map(lambda value: value * (1 + 0.02 * step), arguments[noisy])
        output = module(**arguments | {noisy: given}, return_dict=False)[0]
        return output[0] if isinstance(output, list) else output

    return module, call


def run(module: Any, call: Callable[[int], torch.Tensor], one: DualBlockCacheSettings,
        steps: int) -> tuple[list[torch.Tensor], dict[str, Any]]:  # fmt: skip
    """What a denoiser returns step by step under the pass, and the pass's counts."""
    clock = StepClock()
    scheduler = SimpleNamespace(step=lambda: None, timesteps=list(range(steps)))
    detach = clock.attach(scheduler)
    context = Context(case=declared_bench().case, clock=clock)
    undo = PASS.apply(SimpleNamespace(transformer=module), one, context)
    outputs = []
    with clock.call():
        for step in range(steps):
            outputs.append(call(step))
            scheduler.step()
    undo()
    detach()
    return outputs, context.statistics


# Mochi asks for autocast in float32, which a CPU has not: it says so and computes in float32.
@pytest.mark.filterwarnings("ignore:In CPU autocast")
@pytest.mark.parametrize("name", DENOISERS)
def test_every_family_computes_what_it_does_under_cache_dit_itself(name: str) -> None:
    from cache_dit.caching import BlockAdapter, BlockAdapterRegister

    module, call = small(name)
    untouched = [call(step) for step in range(5)]
    one = settings(threshold=1.0, calibrator="taylorseer" if name.startswith("F") else "none")
    target = module
    if not BlockAdapterRegister.is_supported(module):
        target = BlockAdapter(
            transformer=module, blocks=[part.blocks for part in listed(module)],
            forward_pattern=[part.pattern for part in listed(module)],
        )  # fmt: skip
    with enabled(target, module, **by_hand(one, 5, apart=False)):
        expected = [call(step) for step in range(5)]
    assert traces(module) == []
    with counted(module) as ran:
        outputs, stats = run(module, call, one, 5)
    assert all(map(torch.equal, outputs, expected)) and stats["mask_single"] == "11000"
    assert all(map(torch.equal, outputs[:2], untouched)) and torch.isfinite(outputs[4]).all()
    assert not any(map(torch.equal, outputs[2:], untouched[2:]))
    lists = 2 if name in ("Flux2Transformer2DModel", "HunyuanVideoTransformer3DModel") else 1
    assert len(listed(module)) == lists and len(ran) == 2 * len(set(ran)) + 3 * lists
    assert torch.equal(call(1), untouched[1]) and traces(module) == []


def test_the_text_that_a_last_block_drops_is_not_forecast() -> None:
    """cache-dit itself fails there: it asks a calibrator for what it has never given it."""
    module, call = small("SD3Transformer2DModel")
    one = settings(threshold=1.0, calibrator="foca")
    outputs, _ = run(module, call, one, 5)
    assert not listed(module)[0].returns_text and torch.isfinite(outputs[4]).all()
    assert torch.equal(outputs[1], call(1)) and not torch.equal(outputs[4], outputs[3])


@pytest.mark.parametrize("cached", ["diffusers", "cache-dit"])
def test_a_denoiser_with_a_cache_of_its_own_is_refused_and_keeps_it(
    bench: Bench, cached: str
) -> None:
    from diffusers import FirstBlockCacheConfig

    denoiser = bench.pipe.transformer
    said = f"FluxTransformer2DModel carries a cache of {cached} already: disable that cache first"
    if cached == "diffusers":
        denoiser.enable_cache(FirstBlockCacheConfig(threshold=0.3))
        with pytest.raises(UsageError, match=said):
            bench.put(plan())
        assert denoiser.is_cache_enabled
        denoiser.disable_cache()
        bench.put({"first_block_cache": {}}).remove()  # whose undo also tidies up
    else:
        with enabled(denoiser, denoiser, **by_hand(settings(), 10, apart=True)):
            with pytest.raises(UsageError, match=said):
                bench.put(plan())
            assert denoiser._is_cached
