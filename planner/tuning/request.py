"""What one tuning run was asked to do, and what it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from planner.case.evidence import Quantity
from planner.case.goal import PRESETS, Goal
from planner.case.noun import Noun
from planner.case.prompts import Prompt, hash_prompts
from planner.case.workload import Workload
from planner.errors import UsageError, nearest
from planner.run.pipeline import PipelineSource
from planner.units import format_bytes, format_seconds, parse_bytes, parse_seconds

SEARCH_PROMPTS = 6
"""Prompts on which plans are compared during the search."""

CERTIFY_PROMPTS = 32
"""Unseen prompts of a certificate: the fewest for a skew-corrected bound on a mean."""


class Split(Noun):
    """The prompts of a study, divided before the first trial."""

    search: tuple[Prompt, ...]
    certify: tuple[Prompt, ...]

    @property
    def certify_hash(self) -> str:
        """Return the sha256 of the certification prompts."""
        return hash_prompts(self.certify)


class TuneRequest(Noun):
    """Everything that decides what a tuning run does; a resumed run must be asked the same.

    `domains` narrows settings: pass → setting → {low, high, step, log, choices}.
    """

    source: PipelineSource
    workload: Workload
    goal: Goal
    split: Split
    with_passes: tuple[str, ...] = ()
    without_passes: tuple[str, ...] = ()
    domains: dict[str, dict[str, dict[str, Any]]] = {}
    search_seconds: float = 900.0
    trials: int | None = None
    sampler: Literal["gp", "tpe"] = "gp"
    seed: int = 0
    certify: bool = True
    out: Path = Path()
    command: str = ""

    @property
    def label(self) -> str:
        """Return a folder name for the model, such as shapes; for a folder its real name."""
        model = Path(self.source.model).expanduser()
        name = model.resolve().name if model.is_dir() else model.name.split(":")[-1]
        return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).lower() or "model"


class TuneResult(Noun):
    """What `planner tune` prints with --json; files are paths, None where none was written.

    `skipped` counts the plans that were ruled out by prediction; `rank_correlation` is Spearman's,
    of predicted and measured seconds over the trials, None where too few were foretold.
    """

    status: str
    policy: str | None
    page: str | None
    plan: str
    speedup: float
    latency: Quantity
    lpips: Quantity | None
    baseline: Quantity
    memory: Quantity
    trials: int
    failed_trials: int
    skipped: int = 0
    rank_correlation: float | None = None
    seconds: float
    share_in_pipeline: float
    overhead_seconds_per_trial: float


def goal_of(
    budget: str | None, vram: str | None, max_lpips: str | None, prefer: str | None = None
) -> Goal:
    """Read the goal as written on the command line or in a search file.

    A budget alone implies `balanced`; `none` lifts the cap; a cap alone asks for speed.
    Raises `UsageError` for unreadable values and when nothing at all is asked for.
    """
    if budget is None and vram is None and max_lpips is None:
        raise UsageError("no goal was given", way_out="give --budget 2s, --vram or --max-lpips")
    cap, quality = _cap("balanced" if max_lpips is None else max_lpips)
    if prefer not in (None, "quality", "speed"):
        raise UsageError(f"cannot prefer {prefer!r}", value=prefer, way_out="quality or speed")
    speed = prefer == "speed" or (prefer is None and budget is None)
    return Goal(
        budget_seconds=None if budget is None else parse_seconds(budget),
        vram_bytes=None if vram is None else parse_bytes(vram),
        max_lpips=cap,
        quality=quality,
        prefer="speed" if speed else "quality",
    )


def goal_slug(goal: Goal) -> str:
    """Return the file name of a goal's policy: 2s, 2s-12GiB, 2s-near, lpips0.05, …"""
    parts = []
    if goal.budget_seconds is not None:
        parts.append(format_seconds(goal.budget_seconds))
    if goal.vram_bytes is not None:
        parts.append(format_bytes(goal.vram_bytes))
    if goal.quality not in (None, "balanced") or not parts:
        parts.append(goal.quality or "balanced")
    if goal.prefer == "speed" and goal.budget_seconds is not None:
        parts.append("fastest")
    return "-".join(parts)


def _cap(text: str) -> tuple[float | None, str | None]:
    """Return the cap and its name; `lossless` is resolved once the noise floor is known."""
    if text == "none":
        return None, "none"
    if text in PRESETS:
        return PRESETS[text], text
    if text == "lossless":
        return 0.02, text
    try:
        cap = float(text)
    except ValueError as error:
        known = (*PRESETS, "lossless", "none")
        raise UsageError(
            f"cannot read {text!r} as an LPIPS cap",
            value=text,
            way_out=f"give a number such as 0.10 or a preset; {nearest(text, known)}",
        ) from error
    if not 0 < cap < 2:
        raise UsageError(f"an LPIPS cap of {text} makes no sense", value=cap,
                         way_out="give a number between 0 and 1, such as 0.10")  # fmt: skip
    return cap, f"lpips{cap:g}"
