"""Polynomials made safe to evaluate: fitted to few points, or published without their range."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

HIGHEST_DEGREE = 4
_KNOTS = 65

Rescaling = Callable[[float], float]
"""From an indicator's change to how much the residual is expected to change."""


def polynomial(coefficients: Sequence[float], x: float) -> float:
    """Return the value at x; the coefficient of the highest power comes first."""
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


def magnitude(coefficients: Sequence[float]) -> Rescaling:
    """Return |P|, for a polynomial that was published without the range it was fitted on.

    TeaCache's authors add P itself, which turns negative outside that range: there a change would
    be taken off the sum, and let steps be reused all the longer. |P| is P where that is positive,
    and grows with the change where P falls away; nothing is said of where it is right. Clamped at
    zero, a change too large for the polynomial would count as none. Source: TensorRT-LLM
    VisualGen and ComfyUI-TeaCache add |P|.
    """
    return lambda x: abs(polynomial(coefficients, x))


class Curve:
    """A polynomial on [low, high], made non-negative and non-decreasing.

    Outside that range it goes on in proportion to its end values: a polynomial of degree four
    says nothing there. Evaluated from a table, in about a microsecond.
    """

    def __init__(self, coefficients: Sequence[float], low: float, high: float) -> None:
        self.coefficients = tuple(float(value) for value in coefficients)
        self.low, self.high = float(low), float(high)
        step = (self.high - self.low) / (_KNOTS - 1)
        self._xs = [self.low + step * index for index in range(_KNOTS)]
        self._ys: list[float] = []
        for x in self._xs:
            below = self._ys[-1] if self._ys else 0.0
            self._ys.append(max(below, polynomial(self.coefficients, x)))

    @classmethod
    def of(cls, artifact: Mapping[str, Any]) -> Curve:
        """Read what `as_artifact` wrote."""
        low, high = artifact["range"]
        return cls(artifact["coefficients"], low, high)

    def as_artifact(self) -> dict[str, Any]:
        """Return plain numbers: coefficients, highest power first, and the range."""
        return {"coefficients": list(self.coefficients), "range": [self.low, self.high]}

    def __call__(self, x: float) -> float:
        """Return the rescaled value of x >= 0."""
        if x <= self.low:
            return self._ys[0] * (x / self.low) if self.low > 0 else self._ys[0]
        if x >= self.high:
            return self._ys[-1] * (x / self.high)
        right = bisect_right(self._xs, x)
        if right == _KNOTS:
            return self._ys[-1]
        left = right - 1
        part = (x - self._xs[left]) / (self._xs[right] - self._xs[left])
        return self._ys[left] + part * (self._ys[right] - self._ys[left])


def fit(xs: Sequence[float], ys: Sequence[float]) -> tuple[Curve, float]:
    """Fit ys over xs >= 0; returns the curve and its r² on the points.

    The degree, at most four, is the one with the least leave-one-out error, so that few or
    bunched points get a line and not a wave. All xs alike give a constant.
    """
    import numpy as np

    x, y = np.asarray(xs, dtype=float), np.asarray(ys, dtype=float)
    low, high = float(x.min()), float(x.max())
    scale = high if high > 0 else 1.0
    best, least = np.array([y.mean()]), float(((y - y.mean()) ** 2).mean())
    distinct = len(np.unique(np.round(x / scale, 6)))
    for degree in range(1, min(HIGHEST_DEGREE, distinct - 1, len(x) - 2) + 1):
        powers = np.vander(x / scale, degree + 1)
        found, _, rank, _ = np.linalg.lstsq(powers, y, rcond=1e-8)
        if rank <= degree:
            break
        leverage = np.sum(np.linalg.qr(powers)[0] ** 2, axis=1)
        left_out = (y - powers @ found) / np.maximum(1.0 - leverage, 1e-9)
        error = float((left_out**2).mean())
        if error < least:
            best, least = found, error
    coefficients = best / scale ** np.arange(len(best) - 1, -1, -1)
    curve = Curve([float(f"{value:.8g}") for value in coefficients], low, high)
    residual = y - np.array([curve(float(value)) for value in x])
    spread = float(((y - y.mean()) ** 2).sum())
    return curve, 1.0 - float((residual**2).sum()) / spread if spread > 0 else 1.0
