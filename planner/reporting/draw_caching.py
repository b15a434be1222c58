"""Draws a comparison of caches: distance against speed, and which steps each method computes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.tuning.bench.choose import Point
from planner.tuning.bench.document import Comparison, Row, Watched
from planner.tuning.bench.method import Side

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _SOFT, _MARK = "#1b2127", "#6b7680", "#b04a00"
_COLOURS = ("#1f5fae", "#b04a00", "#1c7a4a", "#8a3b8f", "#7a6a00", "#c2185b", "#00838f", "#5d4037")
_MARKERS = "osD^vP*X<>ph"
_LEAST = 0.002
"""LPIPS at which the axis begins: what is nearer is drawn there."""


def curves_picture(found: Comparison) -> bytes:
    """Return a PNG: a panel for each side, fewer steps and the other side's best in both.

    Our methods have full marks on solid lines, the peers' hollow ones on dashed lines, fewer
    steps grey squares on a thick line, so that a print without colour can be read too.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.2, 6.6), dpi=110, facecolor="white", layout="constrained")
    panels = figure.subplots(1, 2, sharey=True, sharex=True)
    titles = (("ours", "peer", "planner's caches"), ("peer", "ours", "caches of other libraries"))
    for axes, (side, other, title) in zip(panels, titles, strict=True):
        _panel(axes, found, side, other)  # type: ignore[arg-type]
        axes.set_title(title, fontsize=11, loc="left", color=_INK)
    panels[0].set_ylabel("mean LPIPS to the untouched images", fontsize=9.5, color=_INK)
    return _png(figure)


def _panel(axes: Axes, found: Comparison, side: Side, other: Side) -> None:
    rows = [row for row in found.methods if row.side == side and row.curve and not row.left_out]
    for number, row in enumerate(rows):
        ours = side == "ours"
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(*_line(row.curve), _MARKERS[number % len(_MARKERS)], color=colour, ms=4.5, lw=1.1,
                  ls="-" if ours else (0, (4, 2)), mfc=colour if ours else "white", alpha=0.9,
                  label=row.method)  # fmt: skip
    for row in (one for one in found.methods if one.side == "steps"):
        axes.plot(*_line(row.curve), "s", color=_SOFT, ms=3, lw=2.6, ls="-", alpha=0.55,
                  label="fewer steps")  # fmt: skip
    best = front([p for r in found.methods if r.side == other and not r.left_out for p in r.curve])
    name = "the peers' best" if other == "peer" else "planner's best"
    axes.plot(*_line(best), color=_INK, lw=1.4, ls=":", label=name)
    for level in found.levels:
        axes.axhline(level.lpips, color=_MARK, lw=0.9, ls=(0, (1, 2)))
        axes.annotate(f"{level.lpips:g}", (1, level.lpips), (3, 0), fontsize=8.5, color=_MARK,
                      xycoords=("axes fraction", "data"), textcoords="offset points",
                      va="center")  # fmt: skip
    axes.set(yscale="log", xlabel="times as fast as the untouched call")
    axes.set_ylim(bottom=0.9 * _LEAST)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(color="#e3e6e9", lw=0.7)
    axes.legend(fontsize=8, loc="lower right", framealpha=0.92)


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points than which none is both nearer and faster, from slow to fast."""
    kept: list[Point] = []
    for one in sorted(points, key=lambda point: (point.share, point.lpips)):
        if not kept or one.lpips < kept[-1].lpips:
            kept.append(one)
    return kept[::-1]


def _line(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [1 / one.share for one in points], [max(one.lpips, _LEAST) for one in points]


def steps_picture(found: Comparison) -> bytes:
    """Return a PNG: what each method computes at its fastest setting within the loosest level.

    A row a branch, a column a step; the darker, the more of the block stack is computed.
    """
    from matplotlib.figure import Figure

    shown = [(row, row.comparable, share) for row in found.methods
             if row.comparable is not None and (share := _share(row, row.comparable)) is not None]
    shown.sort(key=lambda one: one[2])
    branches = max((len(seen.shares) for _, seen, _ in shown), default=1)
    figure = Figure(figsize=(11, 0.6 + 0.36 * max(1, len(shown))), dpi=110, facecolor="white",
                    layout="constrained")  # fmt: skip
    axes = figure.subplots()
    rows = [line for _, seen, _ in shown for line in _lines(seen, found.workload.steps, branches)]
    axes.imshow(np.array(rows or [[0.0]]), cmap="Blues", vmin=0, vmax=1, aspect="auto",
                interpolation="nearest")  # fmt: skip
    _label(axes, shown, branches)
    loosest = max((level.lpips for level in found.levels), default=0.0)
    names = " above ".join(next((tuple(seen.shares) for _, seen, _ in shown), ("all",)))
    axes.set_title(f"share of the blocks computed at each step, {names}; LPIPS at most {loosest:g}",
                   fontsize=9.5, loc="left", color=_INK)  # fmt: skip
    return _png(figure)


def _lines(seen: Watched, steps: int, branches: int) -> list[list[float]]:
    """Return a row a branch; a shorter schedule's steps lie where the long one's would be."""
    lines = []
    for shares in seen.shares.values():
        line = [0.0] * steps
        for step, share in enumerate(shares):
            line[min(steps - 1, round(step * steps / len(shares)))] = share
        lines.append(line)
    return lines + [[0.0] * steps] * (branches - len(lines))


def _label(axes: Axes, shown: Sequence[tuple[Row, Watched, float]], branches: int) -> None:
    places = [branches * number + (branches - 1) / 2 for number in range(len(shown))]
    names = [f"{row.method}, {_value(seen.value)}" for row, seen, _ in shown]
    axes.set_yticks(places, names, fontsize=8)
    for number, (_, seen, share) in enumerate(shown):
        total = sum(seen.computed.values())
        axes.annotate(f"{1 / share:.1f}×, {total:.0f} forwards", (1, places[number]), (4, 0),
                      xycoords=("axes fraction", "data"), textcoords="offset points",
                      fontsize=8, va="center", color=_INK)  # fmt: skip
        axes.axhline(branches * number - 0.5, color="white", lw=3)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("step", fontsize=9)


def _share(row: Row, seen: Watched) -> float | None:
    return next((one.share for one in row.curve if one.value == seen.value), None)


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
