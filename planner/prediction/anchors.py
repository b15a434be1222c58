"""What published caches left to compute, by label: anchors where no telemetry of a model exists.

A cache that decides at run time computes a share of the denoiser that no architecture tells. What
others measured with the same technique is the only guide before a reference run.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import median

_TEA = re.compile(r"TeaCache (?:ret_steps )?([\d.]+)$")
_DEEP = re.compile(r"DeepCache I=(\d+),B=(\d+)$")

Anchors = Mapping[str, float]
"""Values by key: TeaCache's slope for images and videos, DeepCache's shallow share by branch, and
the computed share of every other label."""


def key_of(label: str, video: bool) -> str:
    """Return the key under which a label's value is kept."""
    if _TEA.match(label):
        return "TeaCache, videos" if video else "TeaCache, images"
    deep = _DEEP.match(label)
    return f"DeepCache, branch {deep[2]}" if deep else label


def share(label: str, video: bool, known: Anchors) -> float | None:
    """Return the share of the denoiser that a cache computes; None for a label without anchor.

    TeaCache's share falls with its threshold t as 1 / (1 + slope × t); DeepCache's shallow steps
    cost a share of a full one.
    """
    if label == "none":
        return 1.0
    value = known.get(key_of(label, video))
    if value is None:
        return None
    tea, deep = _TEA.match(label), _DEEP.match(label)
    if tea:
        return 1 / (1 + value * float(tea[1]))
    if deep:
        return 1 / int(deep[1]) + (1 - 1 / int(deep[1])) * value
    return value


def learn(seen: Iterable[tuple[str, bool, float]]) -> dict[str, float]:
    """Return the median value of every key, from (label, video, computed share)."""
    found: dict[str, list[float]] = defaultdict(list)
    for label, video, computed in seen:
        tea, deep = _TEA.match(label), _DEEP.match(label)
        value = min(1.0, max(0.02, computed))
        if tea:
            value = (1 / value - 1) / float(tea[1])
        elif deep:
            value = max(0.0, (value - 1 / int(deep[1])) / (1 - 1 / int(deep[1])))
        found[key_of(label, video)].append(value)
    return {key: median(values) for key, values in sorted(found.items())}
