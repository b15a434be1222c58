"""Hand-written SVG: scales, ticks and a canvas whose colours come from the page's style sheet.

Text keeps the page's fonts and size, and light and dark need one drawing. Coordinates are rounded
to a tenth of a pixel, so that the same figures give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from markupsafe import Markup

WIDE, HALF, NARROW = 968, 470, 364
"""Widths in CSS pixels: a desktop column, half of one, and a phone in portrait."""


class Scale(NamedTuple):
    """Maps values `low`..`high` to pixels `start`..`stop`; values outside are not cut off."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        span = self.high - self.low or 1.0
        return self.start + (value - self.low) / span * (self.stop - self.start)

    def clip(self, value: float) -> float:
        """Return the pixel of the value nearest to this one inside the scale."""
        return self(min(max(value, self.low), self.high))


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return at most `most` + 1 round values (1, 2 or 5 times a power of ten) inside a range."""
    if high <= low:
        return [low]
    raw = (high - low) / max(1, most)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


class Canvas:
    """An SVG under construction; every method adds one element with CSS classes."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self._parts: list[Markup] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        """Draw a straight line."""
        self._add("line", style, x1=x1, y1=y1, x2=x2, y2=y2)

    def box(
        self, x: float, y: float, width: float, height: float, style: str,
        *, opacity: float | None = None, hint: str = "",
    ) -> None:  # fmt: skip
        """Draw a rectangle; `hint` appears under the pointer."""
        shade = {} if opacity is None else {"fill-opacity": f"{opacity:.2f}"}
        sizes = {"width": max(0.0, width), "height": max(0.0, height)}
        self._add("rect", style, hint, x=x, y=y, **sizes, **shade)

    def circle(self, x: float, y: float, radius: float, style: str, hint: str = "") -> None:
        """Draw a disc."""
        self._add("circle", style, hint, cx=x, cy=y, r=radius)

    def cross(self, x: float, y: float, radius: float, style: str, hint: str = "") -> None:
        """Draw an ×."""
        a, b, c, d = (_px(v) for v in (x - radius, x + radius, y - radius, y + radius))
        self._add("path", style, hint, d=f"M{a} {c}L{b} {d}M{a} {d}L{b} {c}")

    def diamond(self, x: float, y: float, radius: float, style: str, hint: str = "") -> None:
        """Draw a square that stands on a corner."""
        corners = [(x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y)]
        path = "L".join(f"{_px(a)} {_px(b)}" for a, b in corners)
        self._add("path", style, hint, d=f"M{path}Z")

    def polyline(self, points: list[tuple[float, float]], style: str) -> None:
        """Draw a line through points."""
        if points:
            joined = " ".join(f"{_px(x)},{_px(y)}" for x, y in points)
            self._add("polyline", style, points=joined)

    def text(
        self, x: float, y: float, words: str, style: str = "", anchor: str = "start",
        *, turned: bool = False,
    ) -> None:  # fmt: skip
        """Write words at a baseline point; `turned` reads from bottom to top."""
        turn = {"transform": f"rotate(-90 {_px(x)} {_px(y)})"} if turned else {}
        named = {"x": x, "y": y, "text-anchor": anchor, **turn}
        self._parts.append(
            Markup("<text{}>{}</text>").format(_attributes(style, named), words)
        )

    def svg(self, label: str) -> Markup:
        """Return the drawing; `label` is read aloud in its place."""
        size = {"width": self.width, "height": self.height,
                "viewBox": f"0 0 {_px(self.width)} {_px(self.height)}"}  # fmt: skip
        body = Markup("").join(self._parts)
        return Markup('<svg role="img" aria-label="{}"{}>{}</svg>').format(
            label, _attributes("chart", size), body
        )

    def _add(self, tag: str, style: str, hint: str = "", **named: float | str) -> None:
        title = Markup("<title>{}</title>").format(hint) if hint else Markup("")
        self._parts.append(
            Markup("<{0}{1}>{2}</{0}>").format(tag, _attributes(style, named), title)
        )


class Frame:
    """A plot area with two linear axes on a canvas."""

    def __init__(self, canvas: Canvas, x: Scale, y: Scale, above: float = 10) -> None:
        self.canvas, self.x, self.y, self.above = canvas, x, y, above

    def axes(
        self, x_label: str, y_label: str, *, x_most: int, y_most: int,
        x_format: Callable[[float], str] = "{:g}".format,
        y_format: Callable[[float], str] = "{:g}".format,
    ) -> None:  # fmt: skip
        """Draw grid, tick labels and axis names; the y name stands `above` its axis."""
        canvas, x, y = self.canvas, self.x, self.y
        for value in ticks(y.low, y.high, y_most):
            canvas.line(x.start, y(value), x.stop, y(value), "grid")
            canvas.text(x.start - 7, y(value) + 4, y_format(value), "tick", "end")
        for value in ticks(x.low, x.high, x_most):
            canvas.line(x(value), y.start, x(value), y.start + 4, "axis")
            canvas.text(x(value), y.start + 17, x_format(value), "tick", "middle")
        canvas.line(x.start, y.start, x.stop, y.start, "axis")
        canvas.text(x.stop, y.start + 34, x_label, "name", "end")
        canvas.text(x.start - 34, y.stop - self.above, y_label, "name")


def both(draw: Callable[[float], Markup], wide: float = WIDE) -> Markup:
    """Return a drawing for a desktop and one for a phone; the style sheet shows one of them."""
    pair = Markup('<div class="wide">{}</div><div class="narrow">{}</div>')
    return pair.format(draw(wide), draw(NARROW))


def _attributes(style: str, named: Mapping[str, object]) -> Markup:
    values: list[tuple[str, object]] = [("class", style)] if style else []
    values += list(named.items())
    return Markup("").join(
        Markup(' {}="{}"').format(name, _px(value) if isinstance(value, (int, float)) else value)
        for name, value in values
    )


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
