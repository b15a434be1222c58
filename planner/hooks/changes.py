"""How much a tensor has changed since another step: what scalar caches add up."""

from __future__ import annotations

from typing import Any

MOST = 1e6
"""The largest relative change that is told apart; also what a change that is not a number gets."""


def relative_change(now: Any, before: Any) -> float:
    """Return mean|now - before| / mean|before|, at most `MOST` (also where before is all zero)."""
    import torch

    pair = torch.stack([(now - before).abs().mean(), before.abs().mean()])
    change, scale = pair.tolist()  # one wait for the device, not two
    return change / scale if change < MOST * scale else MOST
