"""How much neighbouring denoising steps differ: the indicator that caches look at.

The indicator is the timestep-modulated input of the first block (TeaCache, arXiv 2411.19108);
what it should predict is the change of what the block stack adds to its input, the residual.
"""

from __future__ import annotations

from typing import Any

from planner.errors import UsageError
from planner.hooks.blocks import Form

INDICATORS = ("FluxTransformerBlock", "FluxSingleTransformerBlock")
"""Block classes whose modulated input is known here: by their first adaptive layer norm."""

MOST = 1e6
"""The largest relative change that is told apart; also what a change that is not a number gets."""


def modulated_input(block: Any, args: Any, kwargs: Any) -> Any:
    """Return the first block's normalised input, scaled and shifted by the timestep embedding.

    Raises `UsageError` for a block class that is not among `INDICATORS`.
    """
    name = type(block).__name__
    if name not in INDICATORS:
        raise UsageError(f"the modulated input of {name} is not known", value=name,
                         way_out=f"known are {', '.join(INDICATORS)}")  # fmt: skip
    image, _ = Form(block).inputs(args, kwargs)
    embedding = kwargs["temb"] if "temb" in kwargs else args[2]
    norm = block.norm1 if name == "FluxTransformerBlock" else block.norm
    return norm(image, emb=embedding)[0]


def relative_change(now: Any, before: Any) -> float:
    """Return mean|now - before| / mean|before|, at most `MOST` (also where before is all zero)."""
    import torch

    pair = torch.stack([(now - before).abs().mean(), before.abs().mean()])
    change, scale = pair.tolist()  # one wait for the device, not two
    return change / scale if change < MOST * scale else MOST
