"""Tune, then write the page: what `planner tune` and `planner.tune` do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planner.errors import InvalidFile, PlannerError
from planner.policy.file import read_policy
from planner.reporting.page import write_page
from planner.run.devices.base import backend
from planner.trials.ledger import Ledger
from planner.tuning.conclude import page_path
from planner.tuning.prepare import prepare
from planner.tuning.request import TuneRequest, TuneResult
from planner.tuning.session import Progress, study_folder
from planner.tuning.tune import run


def tune(model: str | None = None, **options: Any) -> TuneResult:
    """Tune a pipeline; options are those of `planner tune`, with underscores for dashes.

    `tune("shapes", budget="2s", out="build")` writes policy and page as the command does;
    `resume` and `fresh` say what to do about an earlier study, `search` names a search file. The
    model is that of the search file, or shapes, where none is given.
    Raises `UsageError`, `NoPlanMeetsGoal`, `NotCertified` or `Interrupted`.
    """
    resume, fresh = options.pop("resume", False), options.pop("fresh", False)
    search = options.pop("search", None)
    request = prepare({"model": model} | options, Path(search) if search else None)
    return tune_and_report(request, Quiet(), resume=resume, fresh=fresh)


def tune_and_report(
    request: TuneRequest, progress: Progress, *, resume: bool = False, fresh: bool = False
) -> TuneResult:
    """Run, then write the page whatever came out, once a trial has been measured."""
    device = backend(request.source.device).describe()
    page = page_path(request, device)
    folder = study_folder(request, device)
    before = _last_record(folder)
    try:
        result = run(request, progress, resume=resume, fresh=fresh)
    except BaseException:
        if _last_record(folder) not in (None, before):
            _write(page, folder, None, progress)
        raise
    written = _write(page, folder, result.policy, progress)
    return result.model_copy(update={"page": str(page) if written else None})


class Quiet:
    """Shows nothing; for use from Python."""

    def say(self, line: str) -> None:
        """Drop a line."""

    def tick(self, phase: str, done: float, of: float, incumbent: str) -> None:
        """Drop a movement of the bar."""


def _write(page: Path, folder: Path, policy: str | None, progress: Progress) -> bool:
    """Write the page; where that is impossible say so, for the outcome itself matters more."""
    try:
        write_page(page, folder, None if policy is None else read_policy(Path(policy)))
    except PlannerError as error:
        progress.say(f"no page: {error}")
    except Exception as error:  # a fault in a drawing must not cost the policy or its exit code
        progress.say(f"no page: unexpected {type(error).__name__} ({error})")
    else:
        progress.say(f"page: {page}")
        return True
    return False


def _last_record(folder: Path) -> bytes | None:
    """Return the last line of the study's ledger; None without a trial, or where it is damaged.

    Damage is for `run` to report.
    """
    path = folder / "ledger.jsonl"
    try:
        measured = path.exists() and Ledger.read(path).trials()
    except InvalidFile:
        return None
    return path.read_bytes().splitlines()[-1] if measured else None
