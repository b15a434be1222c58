"""What the untouched call shows to caches: recorded once a study, before its search."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from planner.case.prompts import Prompt
from planner.case.telemetry import Telemetry
from planner.errors import TrialFailed
from planner.plans.plan import BASELINE
from planner.policy.atomic import replace
from planner.trials.supervisor import Supervisor
from planner.tuning.session import Progress, Session

CALLS = 2
"""Reference calls that caches learn from: a mask of one prompt is a little that prompt's own."""


def recorded(
    session: Session, worker: Supervisor, calls: Sequence[tuple[Prompt, ...]], progress: Progress
) -> Telemetry | None:
    """Return the study's telemetry, or None where the pipeline shows none; one line says why."""
    path = session.folder / "telemetry.json"
    if path.exists():
        try:
            return Telemetry.model_validate_json(path.read_bytes())
        except ValidationError:
            progress.say(f"{path} cannot be read and is recorded anew")
    try:
        found = worker.record(BASELINE, reference_prompts(calls), 3600.0)
    except TrialFailed as error:
        progress.say(f"caches are searched blindly: {error}")
        return None
    replace(path, found.model_dump_json().encode())
    return found


def reference_prompts(calls: Sequence[tuple[Prompt, ...]]) -> tuple[Prompt, ...]:
    """Return the prompts of the last calls, the very last one first: plans are warmed on it."""
    return tuple(prompt for call in reversed(calls[-CALLS:]) for prompt in call)
