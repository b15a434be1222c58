"""Draws predicted against measured seconds, with the line on which both are the same."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from planner.reporting.figures import Foretold
from planner.reporting.svg import Canvas, Frame, Scale

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 34, 46


def draw_foretold(trials: Sequence[Foretold], width: float) -> Markup:
    """Draw every trial at its predicted and measured seconds; a bar spans its interval.

    Bars of early trials may be far longer than any value, and end at the edge.
    """
    height = 360 if width > 400 else 320
    canvas = Canvas(width, height)
    top = 1.08 * max(max(one.predicted, one.measured) for one in trials)
    frame = Frame(canvas, Scale(0, top, _LEFT, width - _RIGHT),
                  Scale(0, top, height - _BOTTOM, _TOP))  # fmt: skip
    frame.axes("measured, seconds a call", "predicted", x_most=6, y_most=6)
    canvas.line(frame.x(0), frame.y(0), frame.x(top), frame.y(top), "mean")
    for one in trials:
        across = frame.x(one.measured)
        canvas.line(across, frame.y.clip(one.low), across, frame.y.clip(one.high), "bar inside")
    for one in trials:
        hint = (f"#{one.number} {one.plan}: predicted {one.predicted:.3g} s "
                f"({one.low:.3g} to {one.high:.3g}), measured {one.measured:.3g} s")  # fmt: skip
        style = "dot inside" if one.inside else "dot outside"
        canvas.circle(frame.x(one.measured), frame.y(one.predicted), 4, style, hint)
    return canvas.svg(f"Predicted against measured seconds of {len(trials)} trials")
