"""Projections of a denoiser that read its text alone.

Cross-attention whose text neither the timestep nor the image touches has the same keys and values
at every step. Read from diffusers 0.42.1: the forwards of the classes in `TEXT_ONLY`, and of their
blocks.
"""

from __future__ import annotations

from typing import Any

CROSS = ("attn2.to_k", "attn2.to_v")
"""Where a block with cross-attention makes keys and values of the text."""

TEXT_ONLY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "LTXVideoTransformer3DModel", "PixArtTransformer2DModel", "SanaTransformer2DModel",
            "UNet2DConditionModel", "WanTransformer3DModel",
        ),
        (*CROSS, "attn2.to_kv"),  # the last one is made by fuse_qkv_projections
    ),
    # Keys and values of the text stand beside the image's in one attention.
    "NucleusMoEImageTransformer2DModel": ("encoder_proj", "attn.add_k_proj", "attn.add_v_proj"),
}  # fmt: skip
"""Denoisers by class, with the last parts of the paths of those projections."""

_MIXED = ("text_image_proj", "image_proj")
"""Ways in which a U-Net makes its text of images: these are no part of the text it is given."""

_BEFORE = (
    "caption_norm", "caption_projection", "condition_embedder.text_embedder", "encoder_hid_proj",
    "txt_norm",
)  # fmt: skip
"""What a text may go through before the blocks."""

_ENDS = tuple({f".{suffix}" for suffixes in TEXT_ONLY.values() for suffix in suffixes})


def is_text_only(path: str) -> bool:
    """Tell whether operations at this path, inside a denoiser of `TEXT_ONLY`, read its text."""
    return path.endswith(_ENDS)


def text_projections(denoiser: Any) -> list[Any]:
    """Return those projections in order; none where the text is made of other things as well."""
    if denoiser.config.get("encoder_hid_dim_type") in _MIXED:
        return []
    wanted = tuple(f".{suffix}" for suffix in TEXT_ONLY.get(type(denoiser).__name__, ()))
    return [module for path, module in denoiser.named_modules() if path.endswith(wanted)]


def before_projections(denoiser: Any) -> list[Any]:
    """Return the modules that the text goes through before it reaches the projections."""
    return [module for path, module in denoiser.named_modules() if path in _BEFORE]
