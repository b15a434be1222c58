"""What a comparison concluded: the document that is committed, printed and replayed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pydantic import ValidationError

from planner.case.device import Device
from planner.case.noun import Noun, Scalar
from planner.case.prompts import Prompt
from planner.case.workload import Workload
from planner.errors import InvalidFile, UsageError
from planner.measure.statistics import median_upper
from planner.run.pipeline import PipelineSource
from planner.tuning.bench.choose import Point
from planner.tuning.bench.method import Side
from planner.tuning.bench.scale import Scale


class Figure(Noun):
    """A measured value with its bounds at 95 %, one-sided where only one is given, and its unit."""

    value: float
    lower: float | None = None
    upper: float | None = None
    unit: str


class Entry(Noun):
    """One side's setting at a level: figures, and the recipe that puts it on again.

    `share` is its part of an untouched call's seconds.
    """

    method: str
    side: Side
    setting: str
    recipe: dict[str, Any]
    lpips: Figure
    seconds: Figure | None = None
    share: Figure


class Level(Noun):
    """What is fastest within a mean LPIPS; `ratio` is the peer's seconds over ours, by rounds.

    `standings` are all settings that hold there, the fastest of each method, best first.
    """

    lpips: float
    ours: Entry | None
    peer: Entry | None
    ratio: float | None
    ratio_interval: tuple[float, float] | None
    rounds: int
    standings: tuple[Entry, ...] = ()


class Watched(Noun):
    """A setting's share of the block stack by branch and step, and the bytes that it held."""

    value: Scalar
    shares: dict[str, tuple[float, ...]]
    computed: dict[str, float]
    held: Figure


class Row(Noun):
    """One method: where it is from, its curve, its default, and why it is left out if it is."""

    method: str
    side: Side
    source: str
    knob: str
    note: str = ""
    left_out: str | None = None
    default: Point | None = None
    at_default: Watched | None = None
    comparable: Watched | None = None
    curve: tuple[Point, ...] = ()


class Equal(Noun):
    """A setting, and the searched mask that computes no more forwards, on the same prompts.

    `computed` are whole forwards of the block stack in one call, all branches.
    """

    method: str
    side: Side
    setting: str
    computed: float
    lpips: float
    mask: str
    mask_computed: float
    mask_lpips: float
    prompts: int


class Comparison(Noun):
    """Everything that a comparison of caches found, and on what.

    `minutes` is what its timed calls took together; loading, LPIPS and watching come on top.
    """

    format: Literal["planner-bench-caching/1"] = "planner-bench-caching/1"
    quick: bool = False
    certified: bool
    source: PipelineSource
    workload: Workload
    device: Device
    peers: dict[str, str | None]
    scale: Scale
    prompts: tuple[Prompt, ...]
    untouched: Figure
    minutes: float
    levels: tuple[Level, ...]
    methods: tuple[Row, ...] = ()
    equal: tuple[Equal, ...] = ()


def read_comparison(path: Path) -> Comparison:
    """Read what a full run recorded.

    Raises `UsageError` where there is no such file, `InvalidFile` where it is something else.
    """
    if not path.exists():
        way_out = "run planner bench caching without --quick first"
        raise UsageError(f"no comparison lies in {path}", value=str(path), way_out=way_out)
    try:
        return Comparison.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValidationError, ValueError) as error:
        what, way_out = f"{path} is no comparison of caches", "restore it, or run the bench anew"
        raise InvalidFile(what, value=str(path), way_out=way_out) from error


def middle(values: Sequence[float], unit: str) -> Figure:
    """Return the median with a two-sided interval of 95 %, by order statistics."""
    low, high = interval(values)
    return Figure(value=digits(median(values)), lower=low, upper=high, unit=unit)


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return where a median lies with 95 %, whatever the distribution; None for too few values."""
    low, high = -median_upper([-value for value in values], 0.975), median_upper(values, 0.975)
    return (digits(low) if math.isfinite(low) else None,
            digits(high) if math.isfinite(high) else None)  # fmt: skip


def digits(value: float) -> float:
    """Return four significant digits: no figure here is known better."""
    return float(f"{value:.4g}")
