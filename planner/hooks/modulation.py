"""TeaCache's indicator: the image tokens that a block's attention sees, by block class.

A block normalises its tokens, then scales and shifts them by the timestep's embedding (TeaCache,
arXiv 2411.19108, equation 4). Each function here does that for the image tokens alone, as the
forward of its class does in diffusers 0.42.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from planner.errors import UsageError

Call = Mapping[str, Any]
"""What a block's forward was called with, by parameter; what was left to its default is absent."""


def modulated_input(block: Any, args: Any, kwargs: Any) -> Any:
    """Return the image tokens, normalised, scaled and shifted: batch × tokens × width.

    Z-Image's blocks see image and text in one sequence, of which all is returned. Raises
    `UsageError` for a block whose class or kind of norm is not known here.
    """
    kind: Any = type(block)
    if kind.__name__ not in _MAKERS:
        raise _unknown(kind.__name__)
    call = _signature(kind).bind(block, *args, **kwargs).arguments
    return _MAKERS[kind.__name__](block, call)


@cache
def _signature(kind: Any) -> inspect.Signature:
    return inspect.signature(kind.forward)


def _unknown(what: str) -> UsageError:
    return UsageError(f"the modulated input of {what} is not known", value=what,
                      way_out=f"known are {', '.join(INDICATORS)}")  # fmt: skip


def _shifted(norm: Any, tokens: Any, embedding: Any) -> Any:
    """Apply an adaptive norm whose linear layer gives shift and scale first, and no more of it.

    Such are AdaLayerNormZero, its single and SD3.5 forms, and CogVideoXLayerNormZero.
    """
    width = tokens.shape[-1]
    shift, scale = _first_two(_rows(norm.linear, norm.silu(embedding), 2 * width), width)
    return norm.norm(tokens) * (1 + scale) + shift


def _rows(linear: Any, x: Any, count: int) -> Any:
    """Return the first `count` outputs at least: of a plain layer no others are computed."""
    import torch

    plain = type(linear) is torch.nn.Linear and "forward" not in vars(linear)
    if not plain or linear._forward_pre_hooks or linear._forward_hooks:
        return linear(x)  # quantized, offloaded or watched: as a whole, the way its owner wants it
    bias = None if linear.bias is None else linear.bias[:count]
    return torch.nn.functional.linear(x, linear.weight[:count], bias)


def _first_two(modulation: Any, width: int) -> Any:
    """Return the first two vectors of a token width each, with a token axis where there is none."""
    if modulation.ndim == 2:
        modulation = modulation[:, None]
    return modulation[..., :width], modulation[..., width : 2 * width]


def _double(block: Any, call: Call) -> Any:
    return _shifted(block.norm1, call["hidden_states"], call["temb"])


def _single(block: Any, call: Call) -> Any:
    return _shifted(block.norm, call["hidden_states"], call["temb"])


def _flux2(block: Any, call: Call) -> Any:
    tokens = call["hidden_states"]
    shift, scale = _first_two(call["temb_mod_img"], tokens.shape[-1])
    return (1 + scale) * block.norm1(tokens) + shift


def _qwen_image(block: Any, call: Call) -> Any:
    modulation = block.img_mod(call["temb"]).chunk(2, dim=-1)[0]  # the other half is the MLP's
    tokens = block.img_norm1(call["hidden_states"])
    return block._modulate(tokens, modulation, call.get("modulate_index"))[0]


def _wan(block: Any, call: Call) -> Any:
    tokens, embedding = call["hidden_states"], call["temb"]
    rows = block.scale_shift_table[:, :2] + embedding[..., :2, :].float()
    # Wan 2.2 TI2V gives every token a timestep of its own, as a fourth axis.
    shift, scale = (row.flatten(1, -2) for row in rows.chunk(2, dim=-2))
    return (block.norm1(tokens.float()) * (1 + scale) + shift).type_as(tokens)


def _hunyuan_first_frame(block: Any, call: Call) -> Any:
    given = (call[name] for name in ("hidden_states", "temb", "token_replace_emb", "num_tokens"))
    return block.norm1(*given)[0]


def _ltx(block: Any, call: Call) -> Any:
    embedding = call["temb"].unflatten(-1, (len(block.scale_shift_table), -1))
    shift, scale = (block.scale_shift_table[:2] + embedding[:, :, :2]).unbind(dim=2)
    return block.norm1(call["hidden_states"]) * (1 + scale) + shift


def _mochi(block: Any, call: Call) -> Any:
    return block.norm1(call["hidden_states"], call["temb"])[0]


def _cogview4(block: Any, call: Call) -> Any:
    tokens, width = call["hidden_states"], call["hidden_states"].shape[-1]
    modulation = block.norm1.linear(call["temb"])[:, None]  # the text's shift is between
    shift, scale = modulation[..., :width], modulation[..., 2 * width : 3 * width]
    return block.norm1.norm(tokens) * (1 + scale) + shift


def _z_image(block: Any, call: Call) -> Any:
    tokens = call["x"]

    def scale_by(name: str) -> Any:
        return block.adaLN_modulation(call[name])[:, None, : tokens.shape[-1]]

    mask = call.get("noise_mask")
    if mask is None:
        scale = scale_by("adaln_input")
    else:  # pictures that are given are told apart from the one that is drawn
        scale = scale_by("adaln_noisy").where(mask[..., None] == 1, scale_by("adaln_clean"))
    return block.attention_norm1(tokens) * (1.0 + scale)


def _basic(block: Any, call: Call) -> Any:
    tokens, embedding = call["hidden_states"], call["timestep"]
    if block.norm_type == "ada_norm_zero":
        classes = call.get("class_labels")
        return block.norm1(tokens, embedding, classes, hidden_dtype=tokens.dtype)[0]
    if block.norm_type != "ada_norm_single":
        raise _unknown(f"{type(block).__name__} with {block.norm_type}")
    rows = block.scale_shift_table[None] + embedding.reshape(len(tokens), 6, -1)
    return block.norm1(tokens) * (1 + rows[:, 1:2]) + rows[:, :1]


def _kandinsky5(block: Any, call: Call) -> Any:
    tokens = call["visual_embed"]
    modulation = block.visual_modulation(call["time_embed"]).float()
    shift, scale = _first_two(modulation, tokens.shape[-1])
    return (block.self_attention_norm(tokens.float()) * (scale + 1.0) + shift).type_as(tokens)


_MAKERS: dict[str, Callable[[Any, Call], Any]] = {
    "FluxTransformerBlock": _double,
    "FluxSingleTransformerBlock": _single,
    "Flux2TransformerBlock": _flux2,
    "QwenImageTransformerBlock": _qwen_image,
    "JointTransformerBlock": _double,
    "WanTransformerBlock": _wan,
    "HunyuanVideoTransformerBlock": _double,
    "HunyuanVideoTokenReplaceTransformerBlock": _hunyuan_first_frame,
    "HunyuanImageTransformerBlock": _double,
    "LTXVideoTransformerBlock": _ltx,
    "CogVideoXBlock": _double,
    "CogView4TransformerBlock": _cogview4,
    "MochiTransformerBlock": _mochi,
    "MotifVideoTransformerBlock": _double,
    "ZImageTransformerBlock": _z_image,
    "Kandinsky5TransformerDecoderBlock": _kandinsky5,
    "BasicTransformerBlock": _basic,
}

INDICATORS = tuple(_MAKERS)
"""Block classes whose modulated input is known here."""
