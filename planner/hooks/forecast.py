"""What the block stack will add at a step that is skipped, forecast from steps that were computed.

Order 0 reuses the last computed residual; order 1 goes on in a straight line through the last two,
over the noise level. Source: TaylorSeer (Liu et al. 2025, arXiv 2503.06923) forecasts with finite
differences over steps; residuals of a whole stack are SeaCache's (arXiv 2602.18993).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planner.hooks.blocks import Streams


def weights(known: Sequence[float], at: float, order: int) -> tuple[float, ...]:
    """Return what each of the last `order` + 1 known places counts for a value at another one.

    They sum to one and fit a polynomial of that order (Lagrange); with fewer known places the
    order is lower. Places are noise levels or step numbers, no two of them equal.
    """
    places = known[-(order + 1) :]
    found = []
    for i, mine in enumerate(places):
        weight = 1.0
        for j, other in enumerate(places):
            weight *= (at - other) / (mine - other) if i != j else 1.0
        found.append(weight)
    return tuple(found)


class History:
    """The last computed residuals of one branch, as many as the order needs."""

    def __init__(self, order: int) -> None:
        self._order = order
        self._places: list[float] = []
        self._added: list[list[Streams]] = []

    def __bool__(self) -> bool:
        """Tell whether anything was computed yet."""
        return bool(self._added)

    def keep(self, place: float, added: list[Streams]) -> None:
        """Keep what each segment added at a place on the schedule; the oldest is dropped."""
        self._places = [*self._places, place][-(self._order + 1) :]
        self._added = [*self._added, added][-(self._order + 1) :]

    def at(self, place: float) -> list[Streams]:
        """Return what each segment is expected to add at a place."""
        parts = weights(self._places, place, self._order)
        if len(parts) == 1:
            return self._added[-1]
        return [_mixed(parts, streams) for streams in zip(*self._added, strict=True)]


def _mixed(parts: Sequence[float], streams: Sequence[Streams]) -> Streams:
    """Return the weighted sum of image and text streams."""
    image = _sum(parts, [one[0] for one in streams])
    if streams[0][1] is None:
        return image, None
    return image, _sum(parts, [one[1] for one in streams])


def _sum(parts: Sequence[float], tensors: Sequence[Any]) -> Any:
    total = tensors[-1] * parts[-1]
    for part, tensor in zip(parts[:-1], tensors[:-1], strict=True):
        total = total.add(tensor, alpha=part)
    return total
