"""What a denoiser is called with, by its class: the shapes that its pipeline prepares.

One function a class, registered by name; the pipelines of diffusers 0.42 are the source.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from planner.errors import UsageError, nearest
from planner.prediction.latents import Latent

Arguments = dict[str, Any]

CLIP_TOKENS = 77


class Asked(NamedTuple):
    """The sizes of one denoiser call; a batch counts both branches where guidance is batched."""

    config: Any
    latent: Latent
    text: int
    batch: int
    dtype: torch.dtype

    def floats(self, *shape: int) -> torch.Tensor:
        """Return activations of this shape for the whole batch."""
        return torch.empty(self.batch, *shape, dtype=self.dtype, device="meta")

    def numbers(self, *shape: int) -> torch.Tensor:
        """Return integers of this shape for the whole batch."""
        return torch.ones(self.batch, *shape, dtype=torch.int64, device="meta")

    @property
    def image(self) -> tuple[int, int, int]:
        """Return channels, height and width of an image model's latent, as the config has them."""
        return (self.config.in_channels, self.latent.height, self.latent.width)

    @property
    def video(self) -> tuple[int, int, int, int]:
        """Return channels, frames, height and width of a video model's latent."""
        return (self.config.in_channels, *self.latent)

    @property
    def packed(self) -> int:
        """Return the number of image tokens where 2×2 latents make one."""
        return (self.latent.height // 2) * (self.latent.width // 2)


class Builder(NamedTuple):
    """How a class is called: its arguments, and how many latents a side make one token.

    `patched` names what the meta device cannot run because it depends on the data.
    """

    arguments: Callable[[Asked], Arguments]
    patch: int
    patched: tuple[str, ...] = ()


BUILDERS: dict[str, Builder] = {}


def inputs(
    *names: str, patch: int, patched: tuple[str, ...] = ()
) -> Callable[[Callable[[Asked], Arguments]], Callable[[Asked], Arguments]]:
    """Register the function that makes the arguments of these denoiser classes."""

    def register(make: Callable[[Asked], Arguments]) -> Callable[[Asked], Arguments]:
        for name in names:
            BUILDERS[name] = Builder(make, patch, patched)
        return make

    return register


def builder_for(cls: str) -> Builder:
    """Return how a denoiser class is called. Raises `UsageError` for one that planner lacks."""
    from planner.prediction import video_inputs  # registers the video models

    del video_inputs
    if cls not in BUILDERS:
        what = f"planner does not know how a pipeline calls {cls}"
        raise UsageError(what, value=cls, way_out=nearest(cls, BUILDERS))
    return BUILDERS[cls]


def guidance(ask: Asked) -> Arguments:
    """Return the guidance scale as an argument, where the model embeds it."""
    return {"guidance": ask.floats()} if ask.config.get("guidance_embeds") else {}


@inputs("FluxTransformer2DModel", patch=2)
def _flux(ask: Asked) -> Arguments:
    ids = torch.empty(ask.packed + ask.text, 3, dtype=ask.dtype, device="meta")
    return {
        "hidden_states": ask.floats(ask.packed, ask.config.in_channels),
        "encoder_hidden_states": ask.floats(ask.text, ask.config.joint_attention_dim),
        "pooled_projections": ask.floats(ask.config.pooled_projection_dim),
        "timestep": ask.floats(),
        "img_ids": ids[: ask.packed],
        "txt_ids": ids[ask.packed :],
        **guidance(ask),
    }


@inputs("Flux2Transformer2DModel", patch=2)
def _flux2(ask: Asked) -> Arguments:
    return {
        "hidden_states": ask.floats(ask.packed, ask.config.in_channels),
        "encoder_hidden_states": ask.floats(ask.text, ask.config.joint_attention_dim),
        "timestep": ask.floats(),
        "img_ids": ask.floats(ask.packed, 4),
        "txt_ids": ask.floats(ask.text, 4),
        **guidance(ask),
    }


@inputs("QwenImageTransformer2DModel", patch=2)
def _qwen_image(ask: Asked) -> Arguments:
    grid = (1, ask.latent.height // 2, ask.latent.width // 2)
    return {
        "hidden_states": ask.floats(ask.packed, ask.config.in_channels),
        "encoder_hidden_states": ask.floats(ask.text, ask.config.joint_attention_dim),
        "timestep": ask.floats(),
        "img_shapes": [[grid]] * ask.batch,
        **guidance(ask),
    }


@inputs("SD3Transformer2DModel", patch=2)
def _sd3(ask: Asked) -> Arguments:
    # CLIP's tokens stand before T5's, whose number is the pipeline's max_sequence_length
    return {
        "hidden_states": ask.floats(*ask.image),
        "encoder_hidden_states": ask.floats(
            CLIP_TOKENS + ask.text, ask.config.joint_attention_dim
        ),
        "pooled_projections": ask.floats(ask.config.pooled_projection_dim),
        "timestep": ask.floats(),
    }


@inputs("UNet2DConditionModel", patch=1)
def _unet(ask: Asked) -> Arguments:
    arguments: Arguments = {
        "sample": ask.floats(*ask.image),
        "timestep": ask.floats(),
        "encoder_hidden_states": ask.floats(ask.text, ask.config.cross_attention_dim),
    }
    if ask.config.addition_embed_type == "text_time":
        width = ask.config.projection_class_embeddings_input_dim
        sizes = 6 * ask.config.addition_time_embed_dim
        conditions = {"text_embeds": ask.floats(width - sizes), "time_ids": ask.floats(6)}
        arguments["added_cond_kwargs"] = conditions
    return arguments


@inputs("PixArtTransformer2DModel", patch=2)
def _pixart(ask: Asked) -> Arguments:
    micro = ask.config.use_additional_conditions
    conditions = {
        "resolution": ask.floats(2) if micro else None,
        "aspect_ratio": ask.floats(1) if micro else None,
    }
    return {
        "hidden_states": ask.floats(*ask.image),
        "encoder_hidden_states": ask.floats(ask.text, ask.config.caption_channels),
        "encoder_attention_mask": ask.numbers(ask.text),
        "timestep": ask.numbers(),
        "added_cond_kwargs": conditions,
    }


@inputs("SanaTransformer2DModel", patch=1)
def _sana(ask: Asked) -> Arguments:
    return {
        "hidden_states": ask.floats(*ask.image),
        "encoder_hidden_states": ask.floats(ask.text, ask.config.caption_channels),
        "encoder_attention_mask": ask.numbers(ask.text),
        "timestep": ask.floats(),
        **guidance(ask),
    }


@inputs("ZImageTransformer2DModel", patch=2)
def _z_image(ask: Asked) -> Arguments:
    channels, height, width = ask.image
    return {
        "x": list(ask.floats(channels, 1, height, width)),
        "t": ask.floats(),
        "cap_feats": list(ask.floats(ask.text, ask.config.cap_feat_dim)),
    }
