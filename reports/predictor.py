"""Writes predictor.md and predictor.png: `python reports/predictor.py DATA.csv`.

DATA.csv is in the format of published.csv. Constants and cross-validated figures are those of the
committed fit; every row is predicted anew.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from planner.prediction.fitting import plain, trusted
from planner.prediction.published import Row, read
from planner.prediction.speeds import FITTED, fitted
from planner.prediction.validate import Verdict, reasons, validate

HERE = Path(__file__).parent
TITLES = {"baselines": "16-bit baselines, s", "ratios": "with over without", "memory": "peak, GiB"}

WHY = {
    "xsd": "A page of November 2022 without versions or method. Its untuned pipeline takes three "
    "times the seconds a step and three times the memory of another source of that year on the "
    "same card; unexplained beyond that.",
    "sdfast-002": "It multiplies float32 in TF32, as its ratio of 1.6 to 16 bits shows; the row "
    "does not say so, and torch's default is full float32.",
    "misc-026": "A laptop of 8 GB cannot hold encoder and denoiser: the tool unloads what rests, "
    "which the row does not say.",
    "lambda-040": "Half again as slow an image as the same card's batch of 4; unexplained.",
    "lx2v-046": "The clock saw the model being loaded, and only four steps after it.",
    "ort-016": "TensorRT's own workspace, of a size that the page does not say; unexplained beyond "
    "that.",
    "hfquant-003": "LLM.int8 multiplies outliers apart in 16 bits; no pass knows that format.",
    "lx2v-002": "Less than the denoiser's 16-bit weights take: something was offloaded, though the "
    "row says nothing was.",
    "lx2v-009": "Hardly more than the denoiser's 16-bit weights: the encoders were offloaded, "
    "though the row says nothing was.",
    "hfquant-012": "Blocks of 2.6 bits are unpacked by many small operations at every call; the "
    "predictor counts one conversion.",
    "hfquant-010": "Blocks of 5 bits are unpacked by many small operations at every call; the "
    "predictor counts one conversion.",
    "sanapaper-008": "Its steps are inferred, as its note says; its linear attention is counted in "
    "float32, as diffusers computes it, which the authors' own code need not.",
    "xdit-033": "Its linear attention is counted in float32, as diffusers computes it.",
    "lx2v-043": "The engine keeps more than the streamed block on a card that has room; how much, "
    "its page does not say.",
    "sglang-018": "FP8 was slower than 16 bits here, as its note says; unexplained.",
}
"""Why a row is far off, by its id or its source's: physics or protocol where it can be named."""


def main() -> None:
    """Predict the rows of the file named on the command line, and write page and picture."""
    rows, _ = read(Path(sys.argv[1]))
    found = validate(rows, fitted())
    known = json.loads(FITTED.read_text(encoding="utf-8"))
    draw(found, HERE / "predictor.png")
    by_id = {row.id: row for row in rows}
    (HERE / "predictor.md").write_text(page(found, known, by_id), encoding="utf-8")


def draw(found: Verdict, file: Path) -> None:
    """Draw predicted against published, one panel a group, with the identity line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4), layout="constrained")
    for axes, (group, title) in zip(figure.subplots(1, 3), TITLES.items(), strict=True):
        mine = [one for one in found.rows if one.group == group]
        scale = 2**30 if group == "memory" else 1
        x = [one.published / scale for one in mine]
        y = [one.predicted / scale for one in mine]
        ends = [min(*x, *y) / 1.2, max(*x, *y) * 1.2]
        axes.plot(ends, ends, color="#888888", linewidth=1)
        families = sorted({_family(one.model) for one in mine})
        for place, family in enumerate(families):
            at = [index for index, one in enumerate(mine) if _family(one.model) == family]
            axes.scatter([x[i] for i in at], [y[i] for i in at], s=12, alpha=0.7, label=family,
                         color=f"C{place % 10}")  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="published", ylabel="predicted", title=title)
        axes.legend(fontsize=6, ncols=2)
    figure.savefig(file, dpi=110)


def _family(model: str) -> str:
    return model.split("-")[0].split(".")[0]


def page(found: Verdict, known: dict[str, Any], rows: dict[str, Row]) -> str:
    """Return the report in Markdown."""
    return "\n".join([
        "# How far predictions are off", "",
        "By `python reports/predictor.py published.csv`; constants by",
        "`python -m planner.prediction.fit published.csv`. Rows are of confidence A and B, on one",
        "device. Errors are absolute, as shares of what was published.", "",
        "![Predicted against published, with the identity line](predictor.png)", "",
        "## What the fit has seen", "",
        *_table(("group", "n", "median", "mean", "coverage"), [
            (name, one["n"], _share(one["median_ape"]), _share(one["mean_ape"]),
             _share(found.coverage[name])) for name, one in found.groups.items()
        ]), "",
        "## What the fit has not seen", "",
        "Whole groups left out in turn. This is what a new row should expect.", "",
        *_table(("left out", "group", "n", "median", "mean"), [
            (name, group, one["n"], _share(one["median_ape"]), _share(one["mean_ape"]))
            for group, key in (("baselines", "left_out"), ("ratios", "ratios_left_out"),
                               ("memory", "memory_left_out"))
            for name, one in known[key].items()
        ]), "",
        "## What others differ by among themselves", "", *_floor(rows), "",
        "## The ten rows that are worst", "", *_worst(found, rows), "",
        "## Not predicted", "", *(f"- {line}" for line in reasons(found.skipped)), "",
    ])  # fmt: skip


def _floor(rows: dict[str, Row]) -> list[str]:
    """Say how far identical configurations of different sources lie apart."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows.values():
        if trusted(row) and plain(row) and row.gpus == 1 and row.gpu:
            groups[(row.model, row.gpu, row.height, row.width, row.frames, row.batch, row.steps,
                    row.forwards, row.stack, row.kernel, row.scope)].append(row)  # fmt: skip
    lines, spreads = [], []
    for key, found in sorted(groups.items(), key=str):
        if len({row.source for row in found}) > 1:
            values = [row.seconds or 0.0 for row in found]
            spreads.append(max(values) / min(values) - 1)
            seconds = ", ".join(f"{value:g}" for value in sorted(values))
            lines.append(f"- {key[0]} on {key[1]}, {key[8]}, {key[6]} steps: {seconds} s")
    if not spreads:
        return ["No configuration was published twice."]
    head = (f"{len(spreads)} configurations were published by several sources; the slowest is at "
            f"the median {np.median(spreads):.0%} above the fastest, at most {max(spreads):.0%}. ")
    return [head + "No predictor of the configuration alone can be closer than about half of that.",
            "", *lines]  # fmt: skip


def _worst(found: Verdict, rows: dict[str, Row]) -> list[str]:
    worst = sorted(found.rows, key=lambda one: -abs(np.log1p(one.error)))[:10]
    return _table(("row", "group", "model", "device", "error", "what its source says", "why"), [
        (one.id, one.group, one.model, one.device, f"{one.error:+.0%}",
         f"{rows[one.id].precision}, {rows[one.id].stack}, {rows[one.id].offload}. "
         + rows[one.id].note.replace("|", "/"),
         WHY.get(one.id, WHY.get(one.id.partition("-")[0], "unexplained"))) for one in worst
    ])  # fmt: skip


def _share(value: float) -> str:
    return f"{value:.1%}"


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return lines + [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]


if __name__ == "__main__":
    main()
