"""Tune, then write the page: what `planner tune` and `planner.tune` do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planner.errors import InvalidFile, PlannerError
from planner.policy.file import PolicyFile, read_policy
from planner.reporting.page import write_page
from planner.run.devices.base import backend
from planner.trials.ledger import Ledger
from planner.tuning.conclude import page_path
from planner.tuning.prepare import prepare
from planner.tuning.request import TuneRequest, TuneResult, goal_slug
from planner.tuning.session import Progress, study_folder
from planner.tuning.tune import run


def tune(model: str = "shapes", **options: Any) -> TuneResult:
    """Tune a pipeline; options are those of `planner tune`, with underscores for dashes.

    `tune("shapes", budget="2s", out="build")` writes policy and page as the command does;
    `resume` and `fresh` say what to do about an earlier study, `search` names a search file.
    Raises `UsageError`, `NoPlanMeetsGoal`, `NotCertified` or `Interrupted`.
    """
    resume, fresh = options.pop("resume", False), options.pop("fresh", False)
    search = options.pop("search", None)
    request = prepare({"model": model} | options, Path(search) if search else None)
    return tune_and_report(request, Quiet(), resume=resume, fresh=fresh)


def tune_and_report(
    request: TuneRequest, progress: Progress, *, resume: bool = False, fresh: bool = False
) -> TuneResult:
    """Run, then write the page whatever came out, once something has been measured."""
    device = backend(request.source.device).describe()
    page = page_path(request.out, request.label, device.slug, goal_slug(request.goal))
    folder = study_folder(request, device)
    policy: PolicyFile | None = None
    before = _trials(folder)
    try:
        result = run(request, progress, resume=resume, fresh=fresh)
        policy = None if result.policy is None else read_policy(Path(result.policy))
        return result
    finally:
        if policy is not None or _trials(folder) not in (0, before):
            _write(page, folder, policy, progress)


class Quiet:
    """Shows nothing; for use from Python."""

    def say(self, line: str) -> None:
        """Drop a line."""

    def tick(self, phase: str, done: float, of: float, incumbent: str) -> None:
        """Drop a movement of the bar."""


def _write(page: Path, folder: Path, policy: PolicyFile | None, progress: Progress) -> None:
    """Write the page; where that is impossible say so, for the outcome itself matters more."""
    try:
        write_page(page, folder, policy)
    except (OSError, PlannerError) as error:
        progress.say(f"no page: {error}")
    else:
        progress.say(f"page: {page}")


def _trials(folder: Path) -> int:
    """Count the trials of the study there; none where it is damaged, which `run` reports."""
    path = folder / "ledger.jsonl"
    try:
        return len(Ledger.read(path).trials()) if path.exists() else 0
    except InvalidFile:
        return 0
