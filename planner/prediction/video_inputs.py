"""What the denoisers of video models are called with; registered like those of image models."""

from __future__ import annotations

import torch

from planner.prediction.inputs import Arguments, Asked, guidance, inputs

_IMAGE_TOKENS = 257
"""Tokens of CLIP ViT-H/14 for one image: 16×16 patches and the class token."""

_WAN_PER_TOKEN = 48
"""Channels by which Wan 2.2 5B is told apart: its pipeline gives every token a timestep."""

_GLYPH_TOKENS, _PICTURE_TOKENS = 256, 729
"""HunyuanVideo-1.5: ByT5 tokens of quoted text, SigLIP tokens of the first frame."""


@inputs("WanTransformer3DModel", patch=2)
def _wan(ask: Asked) -> Arguments:
    tokens = ask.latent.frames * ask.packed
    timestep = ask.floats(tokens) if ask.config.in_channels == _WAN_PER_TOKEN else ask.floats()
    arguments: Arguments = {
        "hidden_states": ask.floats(*ask.video),
        "timestep": timestep,
        "encoder_hidden_states": ask.floats(ask.text, ask.config.text_dim),
    }
    if ask.config.get("image_dim"):
        image = ask.floats(_IMAGE_TOKENS, ask.config.image_dim)
        arguments["encoder_hidden_states_image"] = image
    return arguments


@inputs("HunyuanVideoTransformer3DModel", patch=2)
def _hunyuan(ask: Asked) -> Arguments:
    return {
        "hidden_states": ask.floats(*ask.video),
        "timestep": ask.floats(),
        "encoder_hidden_states": ask.floats(ask.text, ask.config.text_embed_dim),
        "encoder_attention_mask": ask.numbers(ask.text),
        "pooled_projections": ask.floats(ask.config.pooled_projection_dim),
        **guidance(ask),
    }


@inputs("HunyuanVideo15Transformer3DModel", patch=1, patched=("masks",))
def _hunyuan15(ask: Asked) -> Arguments:
    # masks of padding change which tokens are looked at, not how many are computed
    return {
        "hidden_states": ask.floats(*ask.video),
        "timestep": ask.floats(),
        "encoder_hidden_states": ask.floats(ask.text, ask.config.text_embed_dim),
        "encoder_attention_mask": ask.numbers(ask.text),
        "encoder_hidden_states_2": ask.floats(_GLYPH_TOKENS, ask.config.text_embed_2_dim),
        "encoder_attention_mask_2": ask.numbers(_GLYPH_TOKENS),
        "image_embeds": ask.floats(_PICTURE_TOKENS, ask.config.image_embed_dim),
    }


@inputs("LTXVideoTransformer3DModel", patch=1)
def _ltx(ask: Asked) -> Arguments:
    frames, height, width = ask.latent
    return {
        "hidden_states": ask.floats(frames * height * width, ask.config.in_channels),
        "encoder_hidden_states": ask.floats(ask.text, ask.config.caption_channels),
        "timestep": ask.floats(),
        "encoder_attention_mask": ask.numbers(ask.text),
        "num_frames": frames,
        "height": height,
        "width": width,
        "rope_interpolation_scale": (8 / 25, 32, 32),
    }


@inputs("CogVideoXTransformer3DModel", patch=2)
def _cogvideox(ask: Asked) -> Arguments:
    # CogVideoX 1.5 joins frames in pairs; its pipeline pads the latent frames to an even number
    joined = ask.config.get("patch_size_t") or 1
    frames = -(-ask.latent.frames // joined) * joined
    channels, _, height, width = ask.video
    arguments: Arguments = {
        "hidden_states": ask.floats(frames, channels, height, width),
        "encoder_hidden_states": ask.floats(ask.text, ask.config.text_embed_dim),
        "timestep": ask.numbers(),
    }
    if ask.config.use_rotary_positional_embeddings:
        tokens = frames // joined * ask.packed
        angles = torch.empty(tokens, ask.config.attention_head_dim, device="meta")
        arguments["image_rotary_emb"] = (angles, angles)
    return arguments


@inputs("MochiTransformer3DModel", patch=2, patched=("nonzero", "autocast"))
def _mochi(ask: Asked) -> Arguments:
    return {
        "hidden_states": ask.floats(*ask.video),
        "encoder_hidden_states": ask.floats(ask.text, ask.config.text_embed_dim),
        "timestep": ask.floats(),
        "encoder_attention_mask": ask.numbers(ask.text).bool(),
    }
