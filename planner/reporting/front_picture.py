"""Draws a study as one PNG for a README: image pairs on the left, the front on the right.

`python -m planner.reporting.front_picture STUDY_FOLDER OUT.png` (`make publish` does it).
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from planner.case.goal import Goal
from planner.errors import UsageError
from planner.measure.images import load_png
from planner.policy.atomic import replace
from planner.reporting import words
from planner.reporting.figures import Certified, Point, certified, points
from planner.reporting.findings import Findings, read_findings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

_INK, _SOFT, _ACCENT, _GOOD, _MARK = "#1b2127", "#6b7680", "#1f5fae", "#1c7a4a", "#b04a00"
_PLACES = (("best", 0.0), ("median", 0.5), ("nine tenths", 0.9), ("worst", 1.0))


class Shown(NamedTuple):
    """One prompt's pair in the picture, and where it stands among all of them."""

    key: str
    place: str
    lpips: float


def front_picture(path: Path, session_folder: Path) -> None:
    """Write the picture of a study that has measured a plan; the same ledger, the same bytes.

    The pairs stand for the whole range: best, median, nine tenths and worst prompt. Raises
    `UsageError` where no plan was measured or the images are gone.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = read_findings(session_folder, None)
    images = session_folder / "images"
    pairs = [s for s in spread(found.distances(found.plan)) if _there(found, images, s)]
    if not pairs or found.plan is None or found.reference is None:
        way_out = "tune until a plan has been measured, and keep the study's images folder"
        raise UsageError(f"study {session_folder} has no images to show",
                         value=str(session_folder), way_out=way_out)  # fmt: skip
    figure = Figure(figsize=(12.4, 4.3), dpi=140, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1, 2, width_ratios=(1.28, 1))
    left, right = figure.add_subfigure(grid[0, 0]), figure.add_subfigure(grid[0, 1])
    _pairs(left, found, images, pairs)
    seen = certified(found)
    _front(right.add_axes((0.13, 0.16, 0.83, 0.72)), points(found), found.goal, found.reference,
           seen)  # fmt: skip
    out = io.BytesIO()
    canvas.print_png(out, metadata={"Software": None})
    replace(path, out.getvalue())


def spread(distances: Mapping[str, float]) -> list[Shown]:
    """Return the best, median, nine-tenths and worst prompt, each once."""
    order = sorted(distances, key=lambda key: (distances[key], key))
    chosen: dict[str, Shown] = {}
    for place, share in _PLACES if order else ():
        key = order[round(share * (len(order) - 1))]
        chosen.setdefault(key, Shown(key, place, distances[key]))
    return list(chosen.values())


def _there(found: Findings, images: Path, shown: Shown) -> bool:
    return all(file.exists() for file in _files(found, images, shown.key))


def _files(found: Findings, images: Path, key: str) -> tuple[Path, Path]:
    assert found.plan is not None
    name = f"{key}.png"
    return images / "baseline" / name, images / found.plan.digest()[:12] / name


def _pairs(figure: SubFigure, found: Findings, images: Path, pairs: Sequence[Shown]) -> None:
    """Draw untouched images above tuned ones, a column a prompt."""
    axes = figure.subplots(2, len(pairs), squeeze=False, gridspec_kw={
        "left": 0.055, "right": 0.99, "top": 0.93, "bottom": 0.2, "wspace": 0.05, "hspace": 0.05,
    })  # fmt: skip
    for column, shown in enumerate(pairs):
        for row, file in enumerate(_files(found, images, shown.key)):
            one = axes[row][column]
            one.imshow(load_png(file), interpolation="lanczos")
            one.set_xticks([])
            one.set_yticks([])
            one.spines[:].set_visible(False)
        text = fill(found.prompts[shown.key].text, 26, max_lines=2, placeholder="…")
        axes[1][column].set_xlabel(
            f"{shown.place}: LPIPS {shown.lpips:.3f}\n{_plain(text)}", fontsize=8.5, color=_INK,
            linespacing=1.4,
        )  # fmt: skip
    for row, name in enumerate(("untouched", "tuned")):
        axes[row][0].set_ylabel(name, fontsize=10.5, color=_INK)


def _front(
    axes: Axes, seen: Sequence[Point], goal: Goal, reference: float, unseen: Certified | None
) -> None:
    """Draw seconds against mean LPIPS with uncertainty, front and limits."""
    drawn = [(p, p.lpips) for p in seen if p.lpips is not None and p.standing != "stopped"]
    others = [(p, value) for p, value in drawn if not p.on_front]
    front = sorted((p.seconds, value) for p, value in drawn if p.on_front)
    axes.step([s for s, _ in front], [v for _, v in front], where="post", color=_ACCENT, lw=1.3)
    _dots(axes, others, _SOFT)
    _dots(axes, [(p, value) for p, value in drawn if p.on_front], _ACCENT)
    axes.plot([reference], [0], "s", ms=7, color=_INK, clip_on=False)
    axes.annotate("untouched", (reference, 0), (-7, 7), textcoords="offset points", ha="right",
                  fontsize=9, color=_INK)  # fmt: skip
    shown = next((pair for pair in drawn if pair[0].shown), None)
    if shown is not None:
        axes.plot(shown[0].seconds, shown[1], "o", ms=11, mfc="none", mec=_ACCENT, mew=1.4)
        _title(axes, shown[0], unseen, reference)
    if unseen is not None:
        _unseen(axes, unseen)
    _limits(axes, goal, reference, max((value for _, value in drawn), default=0.1))


def _dots(axes: Axes, group: Sequence[tuple[Point, float]], colour: str) -> None:
    below = [p.seconds - p.low for p, _ in group]
    above = [p.high - p.seconds for p, _ in group]
    axes.errorbar(
        [p.seconds for p, _ in group], [value for _, value in group],
        xerr=np.array([below, above]), yerr=np.array([p.error for p, _ in group]), fmt="o", ms=4.5,
        color=colour, elinewidth=0.8,
    )  # fmt: skip


def _title(axes: Axes, shown: Point, unseen: Certified | None, reference: float) -> None:
    seconds = unseen.seconds if unseen else shown.seconds
    line = f"{words.factor(seconds / reference)} as fast:  {shown.plan}"
    axes.set_title(_plain(fill(line, 62)), fontsize=9.5, loc="left", color=_INK)


def _unseen(axes: Axes, unseen: Certified) -> None:
    across = (unseen.seconds_upper or unseen.seconds) - unseen.seconds
    up = (unseen.lpips_upper or unseen.lpips) - unseen.lpips
    axes.errorbar(
        [unseen.seconds], [unseen.lpips], xerr=np.array([[0], [across]]),
        yerr=np.array([[0], [up]]), fmt="D", ms=6, color=_GOOD, elinewidth=1.6, capsize=3,
    )  # fmt: skip
    axes.annotate(
        f"{unseen.n} unseen\nprompts", (unseen.seconds, unseen.lpips), (-11, 0), ha="right",
        va="center", textcoords="offset points", fontsize=9, color=_GOOD,
    )  # fmt: skip


def _limits(axes: Axes, goal: Goal, reference: float, highest: float) -> None:
    top = min(1.1 * highest, 3 * goal.max_lpips) if goal.max_lpips else 1.1 * highest
    axes.set_xlim(0, 1.06 * max(reference, goal.budget_seconds or 0.0))
    axes.set_ylim(0, max(top, 1.3 * (goal.max_lpips or 0.0)))
    right, up = axes.get_xlim()[1], axes.get_ylim()[1]
    inside = (goal.budget_seconds or right, goal.max_lpips or up)
    axes.fill_between([0, inside[0]], inside[1], color=_GOOD, alpha=0.08, lw=0)
    if goal.budget_seconds is not None:
        axes.axvline(goal.budget_seconds, color=_MARK, lw=1.1, ls=(0, (4, 3)))
        axes.text(goal.budget_seconds + 0.01 * right, 0.95 * up, fontsize=9, color=_MARK,
                  s=f"budget {words.seconds(goal.budget_seconds)}")  # fmt: skip
    if goal.max_lpips is not None:
        axes.axhline(goal.max_lpips, color=_MARK, lw=1.1, ls=(0, (4, 3)))
        axes.text(right, goal.max_lpips + 0.015 * up, f"cap {goal.max_lpips:g}", fontsize=9,
                  color=_MARK, ha="right")  # fmt: skip
    axes.set_xlabel("seconds a call", fontsize=9.5, color=_INK)
    axes.set_ylabel("mean LPIPS to the untouched images", fontsize=9.5, color=_INK)
    axes.tick_params(labelsize=9, colors=_SOFT)
    axes.spines[["top", "right"]].set_visible(False)


def _plain(text: str) -> str:
    """Keep dollar signs of a prompt from being read as mathematics."""
    return text.replace("$", r"\$")


if __name__ == "__main__":
    front_picture(Path(sys.argv[2]), Path(sys.argv[1]))
