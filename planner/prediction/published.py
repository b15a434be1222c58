"""Reads measurements that others published, in the format of published.csv, as rows of facts."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from planner.errors import InvalidFile, UsageError

COLUMNS = (
    "id", "model", "height", "width", "frames", "steps", "guidance", "gpu", "n_gpus", "precision",
    "compile", "attention", "cache", "offload", "latency_s", "scope", "peak_vram_gb", "source",
    "note", "batch", "baseline_id", "vram_unit", "confidence",
)  # fmt: skip
"""The columns that are read; others may stand beside them."""

_KERNELS = {
    "sdpa": "", "trt": "", "sglang default": "", "not stated": "", "vanilla": "math",
    "xformers": "flash2", "fa1": "flash2", "fa2": "flash2", "fa2/sdpa": "flash2", "fa2?": "flash2",
    "fa?": "flash2", "flash": "flash2", "fa2 (not stated)": "flash2", "aiter?": "flash2",
    "aitemplate": "flash2", "fa3": "flash3", "fa2/fa3": "flash2", "cudnn": "cudnn",
    "sage": "sage", "sage2": "sage",
}  # fmt: skip
_EIGHT_BITS = "not stated (8-bit attention"
_OLD = ("xformers", "vanilla", "aitemplate", "fa1")
"""Attention labels that say a pipeline of 2022, before torch 2."""

_OF_2022 = ("SD1.5", "SD2.1")
"""Models older than torch 2: such a label on a later one says no more than the kernel."""

_SERVERS = ("sgl-project/sglang", "vllm-project", "ModelTC/LightX2V")
"""Sources whose engines fuse what diffusers runs in single kernels, whatever `compile` says."""

_OTHERS = ("Diffusers", "xDiT", "FastVideo", "Wan official", "Wan2GP")
"""Frameworks that those sources compare themselves with, as their notes begin."""


@dataclass(frozen=True)
class Row:
    """One published measurement; `line` is where it stands in its file, seconds and GiB.

    `stack` is eager, compiled, engine or old; `kernel` an attention kernel or "unknown". Sparse
    attention is a technique: it stands in `cache`. `memory` is None where a row prints none, `unit`
    what is said of its unit and tool.
    """

    line: int
    id: str
    model: str
    height: int
    width: int
    frames: int
    batch: int
    steps: int
    forwards: int
    gpu: str
    gpus: int
    precision: str
    stack: str
    kernel: str
    cache: str
    offload: str
    seconds: float | None
    scope: str
    memory: float | None
    unit: str
    source: str
    note: str
    baseline: str
    confidence: str


@dataclass(frozen=True)
class Faulty:
    """A line that cannot be read: what is wrong where."""

    line: int
    column: str
    value: str
    why: str

    def __str__(self) -> str:
        """Return the sentence for people."""
        return f"line {self.line}, column {self.column}: {self.why} ({self.value!r})"


def read(path: Path) -> tuple[list[Row], list[Faulty]]:
    """Return a file's rows, and its faulty lines beside them.

    Raises `UsageError` for a file that is not there, `InvalidFile` for one without the columns.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {str(path)!r}", value=str(path),
                         way_out="give a CSV file in the format of published.csv")  # fmt: skip
    rows: list[Row] = []
    faulty: list[Faulty] = []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
        if missing:
            what = f"{path.name} lacks the column {', '.join(missing)}"
            way_out = f"its first line must name {', '.join(COLUMNS)}"
            raise InvalidFile(what, value=missing[0], way_out=way_out)
        for values in reader:
            try:
                rows.append(_row(reader.line_num, values))
            except _Unreadable as error:
                faulty.append(Faulty(reader.line_num, *error.args))
    return rows, faulty


class _Unreadable(Exception):
    """Carries column, value and reason of a field that cannot be read."""


def _row(line: int, values: dict[str, str]) -> Row:
    def whole(column: str, usual: int) -> int:
        return round(_number(column, values[column] or str(usual)))

    def amount(column: str) -> float | None:
        return _number(column, values[column]) if values[column] else None

    source = values["source"]
    other = values["note"].startswith(_OTHERS)
    server = any(name in source for name in _SERVERS) and not other
    stack = {"n": "engine" if server else "eager", "y": "compiled"}.get(values["compile"], "engine")
    if stack == "eager" and values["attention"] in _OLD and values["model"] in _OF_2022:
        stack = "old"
    memory = amount("peak_vram_gb")
    unit = values["vram_unit"]
    # What torch's own counters print as GB is divided by 2**30 where nobody has verified it.
    if memory is not None and unit.startswith("GB") and "GiB" not in unit:
        memory *= 1e9 / 2**30
    return Row(
        line=line, id=values["id"], model=values["model"],
        height=whole("height", 0), width=whole("width", 0), frames=whole("frames", 1),
        batch=whole("batch", 1), steps=whole("steps", 1), forwards=whole("guidance", 1),
        gpu=values["gpu"], gpus=whole("n_gpus", 1), precision=values["precision"], stack=stack,
        kernel=_kernel(values["attention"], other), cache=_reused(values),
        offload=values["offload"] or "none", seconds=amount("latency_s"), scope=values["scope"],
        memory=memory, unit=unit, source=source, note=values["note"],
        baseline=values["baseline_id"], confidence=values["confidence"],
    )  # fmt: skip


def _number(column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise _Unreadable(column, text, "this is no number") from None
    if not 0 <= value < float("inf"):
        raise _Unreadable(column, text, "this number is negative or not finite")
    return value


def _kernel(attention: str, other: bool) -> str:
    if attention.startswith(_EIGHT_BITS):
        return "" if other and "likely for" in attention else "sage"
    if _is_sparse(attention):
        return ""
    for name in ("sage", "cudnn", "fa3"):
        if name in attention and attention not in _KERNELS:
            return _KERNELS[name]
    return _KERNELS.get(attention, "unknown")


def _is_sparse(attention: str) -> bool:
    return "sparse" in attention or attention == "SageSLA"


def _reused(values: dict[str, str]) -> str:
    """Return the label of a row's cache, sparse attention included: both leave work out."""
    cache, attention = values["cache"] or "none", values["attention"]
    if not _is_sparse(attention):
        return cache
    return attention if cache == "none" else f"{attention} + {cache}"


def pairs(rows: list[Row]) -> Iterator[tuple[Row, Row]]:
    """Yield (with, without) a technique: rows that name a baseline on the same device."""
    known = {row.id: row for row in rows}
    for row in rows:
        without = known.get(row.baseline)
        if without and without.gpu == row.gpu and row.seconds and without.seconds:
            yield row, without
