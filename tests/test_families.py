"""Skipping the block stack on a real small denoiser of every family that diffusers has registered.

What a stack added, added again to the same input, must give the same output, with no block run but
those that a cache always runs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch.utils._pytree import tree_map

from planner.hooks.blocks import Stack, segments
from planner.hooks.clock import StepClock
from planner.prediction.inputs import Asked, builder_for
from planner.prediction.latents import Latent
from planner.run.traits import traits_of

HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "FluxTransformer2DModel": HEADS | {
        "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 32,
        "pooled_projection_dim": 32, "axes_dims_rope": (4, 6, 6),
    },
    "Flux2Transformer2DModel": HEADS | {
        "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 32,
        "timestep_guidance_channels": 16, "axes_dims_rope": (4, 4, 4, 4),
    },
    "QwenImageTransformer2DModel": HEADS | {
        "in_channels": 16, "out_channels": 4, "num_layers": 3, "joint_attention_dim": 32,
        "axes_dims_rope": (4, 6, 6),
    },
    "SD3Transformer2DModel": HEADS | {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 3,
        "joint_attention_dim": 32, "caption_projection_dim": 32, "pooled_projection_dim": 32,
        "pos_embed_max_size": 8,
    },
    "WanTransformer3DModel": HEADS | {
        "in_channels": 4, "out_channels": 4, "text_dim": 32, "freq_dim": 16, "ffn_dim": 64,
        "num_layers": 3, "rope_max_seq_len": 32,
    },
    "HunyuanVideoTransformer3DModel": HEADS | {
        "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 2,
        "num_refiner_layers": 1, "text_embed_dim": 32, "pooled_projection_dim": 32,
        "rope_axes_dim": (4, 6, 6),
    },
    "LTXVideoTransformer3DModel": HEADS | {
        "in_channels": 8, "out_channels": 8, "cross_attention_dim": 32, "num_layers": 3,
        "caption_channels": 32,
    },
    "CogVideoXTransformer3DModel": HEADS | {
        "in_channels": 4, "out_channels": 4, "time_embed_dim": 32, "text_embed_dim": 32,
        "num_layers": 3, "sample_width": 8, "sample_height": 8, "sample_frames": 5,
        "max_text_seq_length": 8,
    },
    "MochiTransformer3DModel": HEADS | {
        "in_channels": 4, "num_layers": 3, "pooled_projection_dim": 32, "text_embed_dim": 32,
        "time_embed_dim": 16,
    },
    "ZImageTransformer2DModel": {
        "in_channels": 4, "dim": 32, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 2,
        "n_kv_heads": 2, "cap_feat_dim": 32, "axes_dims": [4, 6, 6], "axes_lens": [64, 64, 64],
    },
    "PixArtTransformer2DModel": HEADS | {
        "in_channels": 4, "num_layers": 3, "cross_attention_dim": 32, "sample_size": 8,
        "caption_channels": 32, "use_additional_conditions": False,
    },
}  # fmt: skip
FRAMES = {"CogVideoXTransformer3DModel": 2}


class Again:
    """Runs the stack in the first forward, and adds the same in all others."""

    def __init__(self) -> None:
        self.added: Any = None

    def reuse(self, branch: str, head: Any, args: Any, kwargs: Any) -> Any:
        return self.added

    def computed(self, branch: str, added: Any) -> None:
        self.added = added


def randomly(make: Callable[[], Any]) -> Any:
    """What is made, with random weights: some begin at zero, which would hide the blocks."""
    torch.manual_seed(0)
    module = make().eval().requires_grad_(False)
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return module


def denoiser(name: str) -> tuple[Any, Callable[..., torch.Tensor]]:
    """A small denoiser, and a call of it with the same random arguments every time, and more."""
    module = randomly(lambda: getattr(diffusers, name)(**FAMILIES[name]))
    latent = Latent(frames=FRAMES.get(name, 1), height=8, width=8)
    asked = Asked(module.config, latent, text=8, batch=1, dtype=torch.float32)

    def real(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.is_floating_point():
            return torch.randn(value.shape)
        return torch.ones(value.shape, dtype=value.dtype)

    arguments = tree_map(real, builder_for(name).arguments(asked))

    def call(**more: Any) -> torch.Tensor:
        output = module(**arguments, **more, return_dict=False)[0]
        return output[0] if isinstance(output, list) else output

    return module, call


@contextmanager
def counted(module: Any) -> Iterator[list[str]]:
    """Count the blocks whose linear layers run."""
    ran: list[str] = []
    inside = [(f"{part.name}.{index}", block) for part in segments(module)
              for index, block in enumerate(part.blocks)]  # fmt: skip
    hooks = [
        next(one for one in block.modules() if isinstance(one, torch.nn.Linear))
        .register_forward_pre_hook(lambda *_, place=place: ran.append(place))
        for place, block in inside
    ]  # fmt: skip
    yield ran
    for hook in hooks:
        hook.remove()


# Mochi asks for autocast in float32, which a CPU has not: it says so and computes in float32.
@pytest.mark.filterwarnings("ignore:In CPU autocast")
@pytest.mark.parametrize("name", FAMILIES)
def test_what_the_stack_added_added_again_gives_the_same_output(name: str) -> None:
    module, call = denoiser(name)
    untouched = call()
    clock = StepClock()
    stack = Stack(module, Again(), clock, "again")
    with counted(module) as ran:
        computed = call()
        full = len(ran)
        ran.clear()
        reused = call()
    assert full >= sum(len(part.blocks) for part in segments(module)) and ran == []
    assert torch.equal(computed, untouched) and torch.isfinite(reused).all()
    assert torch.allclose(reused, untouched, rtol=1e-3, atol=1e-4)
    stack.detach()
    assert torch.equal(call(), untouched)


@pytest.mark.filterwarnings("ignore:In CPU autocast")
@pytest.mark.parametrize("name", FAMILIES)
def test_diffusers_first_block_cache_works_where_the_traits_say_so(name: str) -> None:
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache
    from diffusers.models.cache_utils import CacheMixin

    module, call = denoiser(name)
    traits, untouched = traits_of(SimpleNamespace(transformer=module)), call()
    assert traits.skippable
    apply_first_block_cache(module, FirstBlockCacheConfig(threshold=1e6))
    with CacheMixin.cache_context(module, "cond"), counted(module) as ran:
        if not traits.cacheable:
            with pytest.raises((TypeError, ValueError)):
                call()
            return
        computed, full = call(), len(ran)
        reused = call()
    assert torch.equal(computed, untouched) and len(ran) == full + 1, "the first block runs"
    assert torch.allclose(reused, untouched, rtol=1e-3, atol=1e-4)


def test_every_family_of_the_catalogue_that_has_registered_blocks_is_here() -> None:
    from planner.catalog.reader import entry, known

    classes = {part.cls for name in known() for part in entry(name).components
               if part.phase == "denoise"}  # fmt: skip
    without = {"UNet2DConditionModel", "SanaTransformer2DModel", "HunyuanVideo15Transformer3DModel"}
    assert classes - without <= set(FAMILIES)


class Seen:
    """Runs every stack, and remembers for which branch."""

    def __init__(self) -> None:
        self.branches: list[str] = []

    def reuse(self, branch: str, head: Any, args: Any, kwargs: Any) -> None:
        self.branches.append(branch)

    def computed(self, branch: str, added: Any) -> None:
        assert branch == self.branches[-1]


def test_branches_that_a_pipeline_does_not_name_are_told_apart_by_their_order() -> None:
    module, call = denoiser("SD3Transformer2DModel")
    clock, seen = StepClock(), Seen()
    scheduler = SimpleNamespace(step=lambda: None, timesteps=[2, 1, 0])
    detach = clock.attach(scheduler)
    stack = Stack(module, seen, clock, "seen")
    for calls in (2, 2, 1):  # a guidance interval leaves out the last unconditional call
        for _ in range(calls):
            call()
        scheduler.step()
    stack.detach()
    detach()
    assert seen.branches == ["single", "single_2", "single", "single_2", "single"]
