"""The graph as a picture: stages from left to right, clashes in red, exclusions below.

One unit of the drawing is one inch; boxes hide what passes behind them.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from planner.errors import UsageError
from planner.passes.base import Family, Fidelity, Pass, Stage

if TYPE_CHECKING:
    from planner.plans.graph import Clash, Graph

_INK, _GREY, _PALE, _RED = "#1f2933", "#616e7c", "#cbd2d9", "#b91c1c"
_FILLS = {
    Family.SAMPLING: "#dbeafe", Family.CACHING: "#dcfce7", Family.QUANTIZATION: "#fef3c7",
    Family.DISTILLATION: "#fae8ff", Family.ATTENTION: "#ffe4e6", Family.COMPILATION: "#e0e7ff",
    Family.MEMORY: "#f1f5f9",
}  # fmt: skip
_BOX, _TALL, _COLUMN, _ROW = 2.2, 0.62, 3.0, 1.05
_KINDS = ("png", "svg", "pdf")
_MARGIN, _HEAD, _ARC, _LINE = 0.4, 1.15, 0.34, 0.19

Places = dict[str, tuple[float, float]]


def draw(graph: Graph, order: list[tuple[str, str]], path: Path) -> None:
    """Draw the graph; `order` are the edges between neighbouring stages.

    The suffix of `path` chooses the format (png, svg, pdf); missing folders are made. Raises
    `UsageError` for another suffix and for a place that cannot be written to.
    """
    kind = path.suffix.removeprefix(".").lower()
    if kind not in _KINDS:
        raise UsageError(f"cannot draw into {path}: its suffix names no picture format",
                         value=str(path), way_out="end it in .png, .svg or .pdf")  # fmt: skip
    stages = sorted({one.stage for one in graph.legal})
    rows = max((sum(one.stage is s for one in graph.legal) for s in stages), default=1)
    width = max(len(stages), 3) * _COLUMN + 2 * _MARGIN - (_COLUMN - _BOX)
    arcs = [clash for clash in graph.clashes if not _is_slot(clash, graph)]
    notes = _notes(graph, arcs, round((width - 2 * _MARGIN) * 13))
    foot = _LINE * len(notes) + 0.55
    boxes = foot + rows * _ROW + 0.1
    height = boxes + len(arcs) * _ARC + _HEAD
    axes = _paper(width, height)
    places = _places(graph, stages, foot + rows * _ROW / 2 + 0.1)
    _draw_head(axes, graph, stages, height)
    _draw_order(axes, order, places)
    for clash in graph.clashes:
        if clash in arcs:
            level = arcs.index(clash)
            _draw_arc(axes, clash, places, boxes + _ARC * (level + 0.55), str(level + 1))
        else:
            _draw_slot(axes, places[clash.a], places[clash.b])
    for one in graph.legal:
        _draw_pass(axes, one, places[one.name], one.name in graph.required)
    for row, (text, weight) in enumerate(notes):
        axes.text(_MARGIN, foot - 0.3 - row * _LINE, text, fontsize=8.5, va="top", color=_INK,
                  weight=weight)  # fmt: skip
    drawn = BytesIO()
    axes.figure.savefig(drawn, format=kind, dpi=150, facecolor="white")
    _write(path, drawn.getvalue())


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror})", value=str(path),
                         way_out="name a file that this user may write to") from error  # fmt: skip


def _paper(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    return axes


def _is_slot(clash: Clash, graph: Graph) -> bool:
    """Tell whether two passes of one stage exclude each other whatever their settings."""
    stages = {one.stage for one in graph.legal if one.name in (clash.a, clash.b)}
    return clash.always and clash.verdict == "breaks" and len(stages) == 1


def _notes(graph: Graph, arcs: list[Clash], characters: int) -> list[tuple[str, str]]:
    """Return the lines below the boxes with their font weight: numbered clashes, exclusions."""
    care = [
        f"{number}  {clash.verdict}{'' if clash.always else ' with some settings'}: {clash}"
        for number, clash in enumerate(arcs, 1)
    ]
    lines: list[tuple[str, str]] = []
    for title, said in (("Not together, or with care", care), ("Not legal here", graph.exclusions)):
        if said:
            lines += [("", "normal")] if lines else []
            lines.append((title, "bold"))
        for line in said:
            wrapped = wrap(line, characters, subsequent_indent="      ")
            lines += [(part, "normal") for part in wrapped]
    return lines


def _places(graph: Graph, stages: list[Stage], middle: float) -> Places:
    """Return name → centre of its box: one column a stage, passes that clash side by side."""
    places = {}
    for column, stage in enumerate(stages):
        names = _neighbours([one.name for one in graph.legal if one.stage is stage], graph)
        for row, name in enumerate(names):
            x = _MARGIN + _BOX / 2 + column * _COLUMN
            places[name] = (x, middle + ((len(names) - 1) / 2 - row) * _ROW)
    return places


def _neighbours(names: list[str], graph: Graph) -> list[str]:
    """Return the names with clash partners next to each other."""
    pairs = [{clash.a, clash.b} for clash in graph.clashes]
    arranged: list[str] = []
    for name in names:
        partners = [other for other in arranged if {name, other} in pairs]
        where = arranged.index(partners[-1]) + 1 if partners else len(arranged)
        arranged.insert(where, name)
    return arranged


def _draw_head(axes: Any, graph: Graph, stages: list[Stage], height: float) -> None:
    case = graph.case
    title = f"{case.model.id} on {case.device.name}"
    axes.text(_MARGIN, height - 0.38, title, fontsize=13, weight="bold", color=_INK, va="center")
    legend = "put on from left to right  ·  dashed box: another trajectory  ·  red: not together"
    axes.text(_MARGIN, height - 0.64, legend, fontsize=8.5, color=_GREY, va="center")
    for column, stage in enumerate(stages):
        label = f"{column + 1}  {stage.name.lower().replace('_', ' ')}"
        x = _MARGIN + _BOX / 2 + column * _COLUMN
        axes.text(x, height - _HEAD + 0.08, label, ha="center", va="center", fontsize=11,
                  color=_GREY, weight="bold")  # fmt: skip


def _draw_order(axes: Any, order: list[tuple[str, str]], places: Places) -> None:
    for first, second in order:
        (x0, y0), (x1, y1) = places[first], places[second]
        arrow = {"arrowstyle": "-|>", "color": _PALE, "lw": 1.1, "shrinkA": 3, "shrinkB": 3}
        axes.annotate("", (x1 - _BOX / 2, y1), (x0 + _BOX / 2, y0), zorder=1, arrowprops=arrow)


def _draw_slot(axes: Any, above: tuple[float, float], below: tuple[float, float]) -> None:
    """Join two boxes of one column, of which a plan may hold one."""
    (x0, y0), (x1, y1) = above, below
    axes.plot((x0, x1), (y0, y1), color=_RED, linewidth=2, zorder=2)
    axes.text(x0, (y0 + y1) / 2, "one of the two", fontsize=8, color=_RED, ha="center",
              va="center", zorder=2.5,
              bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})  # fmt: skip


def _draw_arc(axes: Any, clash: Clash, places: Places, peak: float, number: str) -> None:
    """Join two boxes by a numbered curve over all others; dotted where it is no prohibition."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    hard = clash.always and clash.verdict == "breaks"
    (x0, y0), (x1, y1) = places[clash.a], places[clash.b]
    x0, x1 = x0 + _BOX / 4, x1 - _BOX / 4
    control = (peak - (y0 + y1) / 8) / 0.75  # a cubic curve reaches 3/4 of its controls
    curve = Curve([(x0, y0), (x0, control), (x1, control), (x1, y1)], [1, 4, 4, 4])
    style = {"linewidth": 2.0, "linestyle": "-"} if hard else {"linewidth": 1.4, "linestyle": ":"}
    axes.add_patch(PathPatch(curve, facecolor="none", edgecolor=_RED, zorder=2, **style))
    axes.text((x0 + x1) / 2, peak, number, fontsize=8.5, color=_RED, ha="center", va="center",
              zorder=2.5, weight="bold",
              bbox={"facecolor": "white", "edgecolor": _RED, "boxstyle": "circle,pad=0.2",
                    "linewidth": 1})  # fmt: skip


def _draw_pass(axes: Any, one: Pass, place: tuple[float, float], required: bool) -> None:
    from matplotlib.patches import FancyBboxPatch

    x, y = place
    axes.add_patch(FancyBboxPatch(
        (x - _BOX / 2, y - _TALL / 2), _BOX, _TALL, zorder=3,
        boxstyle="round,pad=0,rounding_size=0.1", facecolor=_FILLS[one.family],
        edgecolor=_INK, linewidth=2.4 if required else 1.1,
        linestyle="--" if one.fidelity is Fidelity.DIVERGENT else "-",
    ))  # fmt: skip
    axes.text(x, y + 0.1, one.name, ha="center", va="center", fontsize=10, color=_INK, zorder=5)
    axes.text(x, y - 0.15, f"{one.family}, {one.fidelity}", ha="center", va="center",
              fontsize=8, color=_GREY, zorder=5)  # fmt: skip
