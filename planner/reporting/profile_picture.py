"""Draws what `planner profile` found: how steps change, and what every cache would make of it."""

from __future__ import annotations

import io
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from planner.case.telemetry import RESIDUAL, Series
from planner.policy.atomic import replace
from planner.tuning.profile import CacheProfile, Profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _SOFT = "#1b2127", "#6b7680"
_STYLES = (
    ("#1f5fae", "-", "o"), ("#b04a00", "--", "s"), ("#1c7a4a", "-.", "^"), ("#7a3fa0", ":", "D"),
    ("#a03050", "-", "v"), ("#3f6f70", "--", "P"), ("#806000", "-.", "X"), ("#505a64", ":", "*"),
)  # fmt: skip
"""Colour, line and mark together: curves are told apart without colour too."""


def profile_picture(found: Profile, path: Path) -> None:
    """Write four panels as one PNG: changes, lengths, errors, and the steps that are computed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9.2), dpi=120, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    (changes, ratios), (curves, masks) = figure.subplots(2, 2)
    _changes(changes, found)
    _ratios(ratios, found)
    _curves(curves, found)
    _masks(masks, found)
    model, device = found.case.model.id, found.case.device.name
    figure.suptitle(f"{model} on {device}, {found.telemetry.steps} steps under '{found.under}', "
                    f"{len(found.telemetry.runs)} calls", color=_INK)  # fmt: skip
    out = io.BytesIO()
    canvas.print_png(out, metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, out.getvalue())


def _first_branch(found: Profile, name: str) -> list[Series]:
    """Return the series of the first branch, one a recorded call."""
    return [next(iter(branches.values())) for branches in found.telemetry.series(name)]


def _changes(axes: Axes, found: Profile) -> None:
    """Draw the relative change from step to step of every tensor that caches look at."""
    names = dict.fromkeys(
        name for run in found.telemetry.runs for seen in run.values() for name in seen
        if name == RESIDUAL or not name.startswith(RESIDUAL)  # the whole stack's, not its groups'
    )  # fmt: skip
    for name, (colour, line, _) in zip(names, cycle(_STYLES), strict=False):
        rows = np.array([series.changes() for series in _first_branch(found, name)])
        steps = range(1, rows.shape[1] + 1)
        axes.plot(steps, rows.mean(0), line, color=colour, label=_said(name))
        axes.fill_between(steps, rows.min(0), rows.max(0), color=colour, alpha=0.12, lw=0)
    axes.set_yscale("log")
    _worded(axes, "Change from one step to the next (range over calls)", "step",
            "mean|x − before| / mean|before|")  # fmt: skip
    axes.legend(fontsize=8, frameon=False, ncols=2)


def _said(name: str) -> str:
    return name if name in ("latents", "output", "residual") else f"{name}'s indicator"


def _ratios(axes: Axes, found: Profile) -> None:
    """Draw how much longer residual and output are than a step before."""
    for name, (colour, line, _) in zip(("residual", "output"), _STYLES, strict=False):
        seen = _first_branch(found, name)
        if seen:
            rows = np.array([series.ratios for series in seen])
            steps = range(1, rows.shape[1] + 1)
            axes.plot(steps, rows.mean(0), line, color=colour, label=name)
            axes.fill_between(steps, rows.min(0), rows.max(0), color=colour, alpha=0.15, lw=0)
    axes.axhline(1.0, color=_SOFT, lw=0.8)
    _worded(axes, "Length by that of the step before", "step", "|x| / |before|, mean over tokens")
    axes.legend(fontsize=8, frameon=False)


def _curves(axes: Axes, found: Profile) -> None:
    """Draw for every cache the computed steps against the error proxy, over its settings."""
    for cache, (colour, line, mark) in zip(found.caches, cycle(_STYLES), strict=False):
        pairs = sorted(
            (point.simulated.computed, point.simulated.error)
            for point in cache.points if point.simulated.error
        )  # fmt: skip
        if pairs:
            axes.plot(*zip(*pairs, strict=True), line, color=colour, marker=mark, ms=4,
                      label=cache.name)  # fmt: skip
    axes.set_yscale("log")
    _worded(axes, "What settings would compute, and the error they would gather",
            "computed steps of a branch", "error proxy (lower is nearer)")  # fmt: skip
    axes.legend(fontsize=8, frameon=False)


def _masks(axes: Axes, found: Profile) -> None:
    """Draw which steps every cache would compute where it computes about a third of them."""
    wanted, rows, names = found.telemetry.steps / 3, [], []
    for cache in found.caches:
        if cache.points:
            point = min(cache.points, key=lambda one: abs(one.simulated.computed - wanted))
            masks = [mask for run in point.simulated.masks for mask in run.values()]
            rows.append([fmean(mask[i] == "1" for mask in masks) for i in range(len(masks[0]))])
            names.append(f"{cache.name}({point.value:.3g})")
    if rows:
        axes.imshow(rows, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.set_yticks(range(len(names)), names, fontsize=8)
    _worded(axes, "Steps computed (dark: in every call), at about a third of them", "step", "")


def _worded(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10, color=_INK, loc="left")
    axes.set_xlabel(x, fontsize=9, color=_SOFT)
    axes.set_ylabel(y, fontsize=9, color=_SOFT)
    axes.tick_params(labelsize=8, colors=_SOFT)


def interval(cache: CacheProfile) -> str:
    """Return where a cache's setting changes anything, in words."""
    if cache.low is None or cache.high is None:
        return "changes nothing"
    return f"{cache.low:.3g} – {cache.high:.3g}"
