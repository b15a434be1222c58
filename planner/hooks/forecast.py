"""What a skipped step would give, forecast from steps that were computed.

Order 0 reuses the last computed value; order 1 goes on in a straight line through the last two,
over the noise level. Source: TaylorSeer (Liu et al. 2025, arXiv 2503.06923) forecasts with finite
differences over steps; residuals of a whole stack are SeaCache's (arXiv 2602.18993).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


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
    """The last computed values of one branch, as many as the order needs.

    A value is a nest of tensors: what each segment of a stack added, or a denoiser's output.
    """

    def __init__(self, order: int) -> None:
        self._order = order
        self._places: list[float] = []
        self._values: list[Any] = []

    def __bool__(self) -> bool:
        """Tell whether anything was computed yet."""
        return bool(self._values)

    def keep(self, place: float, value: Any) -> None:
        """Keep a computed value at a place on the schedule; the oldest is dropped."""
        self._places = [*self._places, place][-(self._order + 1) :]
        self._values = [*self._values, value][-(self._order + 1) :]

    def at(self, place: float) -> Any:
        """Return what is expected at a place, packed as the values are."""
        from torch.utils._pytree import tree_map

        parts = weights(self._places, place, self._order)
        if len(parts) == 1:
            return self._values[-1]
        return tree_map(lambda *leaves: _mixed(parts, leaves), *self._values)


def _mixed(parts: Sequence[float], leaves: Sequence[Any]) -> Any:
    """Return the weighted sum of tensors; what is none (a stream that is not there) stays."""
    if not hasattr(leaves[-1], "shape"):
        return leaves[-1]
    total = leaves[-1] * parts[-1]
    for part, leaf in zip(parts[:-1], leaves[:-1], strict=True):
        total = total.add(leaf, alpha=part)
    return total
