"""Renders one image under a policy and keeps it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from planner.policy import atomic
from planner.policy.runtime import Policy


def generate(policy: Policy, pipe: Any, prompt: str, seed: int, out: Path) -> dict[str, Any]:
    """Apply a policy, render one prompt and write the image as PNG; the plan comes off again.

    Returns what the passes observed, by name. Raises `PolicyDoesNotFit` as `apply` does, and
    `UsageError` or `PlannerError` where the file cannot be written.
    """
    import torch

    with policy.apply(pipe) as handle:
        # The initial latents are drawn on the CPU: a seed then means the same on every device.
        noise = torch.Generator("cpu").manual_seed(seed)
        image = pipe(prompt=prompt, generator=noise, output_type="pil").images[0]
        stats = handle.stats
    content = io.BytesIO()
    image.save(content, format="PNG")
    atomic.replace(out, content.getvalue())
    return stats
