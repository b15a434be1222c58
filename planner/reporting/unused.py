"""Why the plan does without the passes that were legal: a clash, or what was seen with them."""

from __future__ import annotations

from planner.reporting import words
from planner.reporting.findings import Findings
from planner.trials.trial import Trial
from planner.tuning.score import Score


def unused(found: Findings) -> dict[str, str]:
    """Return one sentence for every legal pass that the shown plan does not contain."""
    if found.plan is None:
        return {}
    rest = [name for name in found.facts.get("legal", ()) if name not in found.plan]
    return {name: _why(found, name) for name in rest}


def _why(found: Findings, name: str) -> str:
    assert found.plan is not None
    for a, b, because in found.facts.get("clashes", ()):
        if name in (a, b) and (b if name == a else a) in found.plan:
            return str(because)
    tried = [trial for trial in found.trials if name in trial.plan]
    if not tried:
        return "in no plan that was tried"
    seen = [(trial, found.scores[trial.number]) for trial in tried if trial.number in found.scores]
    if not seen:
        return f"failed in all of {words.count(len(tried), 'trial')}"
    best, score = min(seen, key=_rank)
    looked = words.lpips(score.lpips) if score.lpips is not None else "not looked at"
    kept = "" if score.inside and not _stopped(best) else ", outside the limits or stopped early"
    return (f"in {words.count(len(tried), 'trial')}; best with it: {best.plan}, "
            f"{words.seconds(score.seconds)}, LPIPS {looked}{kept}")  # fmt: skip


def _rank(pair: tuple[Trial, Score]) -> tuple[bool, bool, float]:
    """Order plans: inside the limits first, whole ones first, then by the objective."""
    trial, score = pair
    objective = float("inf") if score.objective is None else score.objective
    return not score.inside, _stopped(trial), objective


def _stopped(trial: Trial) -> bool:
    return trial.measured is not None and trial.measured.stopped_early is not None
