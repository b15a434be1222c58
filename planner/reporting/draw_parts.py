"""Draws computed steps, what each pass bought, and the certificate's single calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from planner.reporting.figures import Strip
from planner.reporting.svg import Canvas, Frame, Scale, ticks


class Bar(NamedTuple):
    """One horizontal bar: its name, value, the value as written, and its style."""

    name: str
    value: float
    written: str
    style: str


class Guide(NamedTuple):
    """A horizontal line through a plot, with its name."""

    value: float
    name: str
    style: str


def draw_strips(strips: Sequence[Strip], width: float) -> Markup:
    """Draw one row of cells a strip: dark where computed, pale where reused, empty where absent."""
    longest = max(len(strip.computed) for strip in strips)
    row = 48
    canvas = Canvas(width, row * len(strips) + 20)
    for index, strip in enumerate(strips):
        _strip(canvas, strip, row * index + 18, width / longest)
    foot = row * len(strips) + 8
    for value in ticks(0, longest, 10 if width > 500 else 5):
        step = max(1, round(value))
        canvas.text((step - 0.5) * width / longest, foot, str(step), "tick", "middle")
    return canvas.svg("Which steps were computed and which reused")


def _strip(canvas: Canvas, strip: Strip, top: float, cell: float) -> None:
    computed, absent = sum(strip.computed), sum(strip.absent)
    said = f"{_count(computed)} of {len(strip.computed)}"
    said += " steps computed" if canvas.width > 500 else ""
    said += f", {_count(absent)} left out" if absent else ""
    canvas.text(0, top - 5, strip.label, "row-name")
    canvas.text(canvas.width, top - 5, said, "note", "end")
    side = cell - (1.5 if cell > 5 else 0.6)
    for step, (share, gone) in enumerate(zip(strip.computed, strip.absent, strict=True)):
        hint = f"step {step + 1}: computed in {share:.0%} of {strip.calls} calls"
        kind = "cell-absent" if gone > 0.5 else "cell-off"
        canvas.box(step * cell, top, side, 20, kind, hint=hint)
        if share > 0:
            canvas.box(step * cell, top, side, 20, "cell-on", opacity=share, hint=hint)


def draw_bars(bars: Sequence[Bar], width: float) -> Markup:
    """Draw horizontal bars from zero with names above them and values behind them."""
    row = 40
    canvas = Canvas(width, row * len(bars) + 6)
    high = max([bar.value for bar in bars] + [1e-9])
    scale = Scale(0, high, 0, width - 74)
    for index, bar in enumerate(bars):
        top = row * index
        canvas.text(0, top + 13, bar.name, "row-name")
        canvas.box(0, top + 19, max(1.0, scale(bar.value)), 12, f"fill {bar.style}")
        canvas.text(scale(bar.value) + 7, top + 30, bar.written, "value")
    return canvas.svg("Bars: " + ", ".join(f"{bar.name} {bar.written}" for bar in bars))


def draw_dots(
    values: Sequence[float], guides: Sequence[Guide], x_label: str, y_label: str, width: float
) -> Markup:
    """Draw single values in the given order with horizontal guides (a limit, a mean, a bound).

    The axis begins at zero where values come near it, else shortly below the lowest.
    """
    height = 270
    canvas = Canvas(width, height)
    marks = [*values, *(guide.value for guide in guides)]
    low, high = min(marks), max([*marks, 1e-9])
    low = 0.0 if low < 0.5 * high else low - 0.15 * (high - low)
    frame = Frame(canvas, Scale(0.5, len(values) + 0.5, 46, width - 14),
                  Scale(low, high + 0.2 * (high - low), height - 46, 34))  # fmt: skip
    frame.axes(x_label, y_label, x_most=6, y_most=5)
    for guide in guides:
        up = frame.y(guide.value)
        canvas.line(frame.x.start, up, frame.x.stop, up, guide.style)
    for guide, up in _apart([(guide, frame.y(guide.value)) for guide in guides]):
        canvas.text(frame.x.start + 6, up - 5, guide.name, f"{guide.style}-name")
    for index, value in enumerate(values, start=1):
        canvas.circle(frame.x(index), frame.y(value), 3.2, "dot inside", f"{value:.4g}")
    return canvas.svg(f"{y_label}: {len(values)} values")


def _apart(placed: list[tuple[Guide, float]]) -> list[tuple[Guide, float]]:
    """Move names upwards until none stands on another."""
    result: list[tuple[Guide, float]] = []
    for guide, up in sorted(placed, key=lambda pair: -pair[1]):
        result.append((guide, min(up, result[-1][1] - 14) if result else up))
    return result


def _count(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
