"""How a pipeline calls its encoders: token ids of a fixed or asked length, or one picture."""

from __future__ import annotations

from typing import Any

import torch

from planner.catalog.entry import Component

_LANGUAGE = ("language_model",)
"""Where a model of text and pictures keeps the part that reads a prompt."""


def encoder_call(module: Any, part: Component, text: int, batch: int) -> tuple[Any, dict[str, Any]]:
    """Return what to call and the arguments for one prompt, or picture, an image of the batch.

    A model of text and pictures is asked as its pipeline asks it: about text alone, by the stack of
    its language model; its output head, whose answer nobody reads, is left out.
    """
    if module.main_input_name == "pixel_values":
        side = module.config.image_size
        dtype = next(module.parameters()).dtype
        pixels = torch.empty(batch, 3, side, side, dtype=dtype, device="meta")
        return module, {"pixel_values": pixels}
    tokens = (part.tokens or text) + part.added_tokens
    ids = torch.ones(batch, tokens, dtype=torch.int64, device="meta")
    arguments: dict[str, Any] = {"input_ids": ids}
    if hasattr(module.config.get_text_config(), "num_key_value_heads"):
        # what a causal model makes of padding; one that it makes itself looks at its data
        mask = torch.ones(batch, 1, tokens, tokens, dtype=torch.bool, device="meta")
        arguments |= {"attention_mask": mask, "use_cache": False}
    return _reader(module), arguments


def _reader(module: Any) -> Any:
    """Return the part of a module that reads text."""
    inner = getattr(module, "model", module)
    for name in _LANGUAGE:
        inner = getattr(inner, name, inner)
    return inner if inner is not module else module
