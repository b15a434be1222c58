"""What a run without a policy has to show: the document of `planner tune`, as far as it came."""

from __future__ import annotations

from typing import Any

from planner.case.evidence import Quantity
from planner.errors import Interrupted, NoPlanMeetsGoal, NotCertified, PlannerError
from planner.reporting.figures import certified
from planner.reporting.findings import Findings, read_findings
from planner.run.devices.base import backend
from planner.tuning.conclude import page_path
from planner.tuning.request import TuneRequest, TuneResult
from planner.tuning.session import study_folder

STATUS: dict[type[PlannerError], str] = {
    NoPlanMeetsGoal: "none", NotCertified: "not certified", Interrupted: "interrupted",
}  # fmt: skip
"""How a run may end with its study kept, by the error that says so."""


def unreached(request: TuneRequest, error: PlannerError) -> dict[str, Any]:
    """Return the fields of a `TuneResult` with the best effort, and what went wrong.

    Everything is read from the study's ledger; what was not measured is None. The plan is the
    first finalist where its test failed, else the best inside the limits, else the fastest.
    """
    device = backend(request.source.device).describe()
    folder = study_folder(request, device)
    page = page_path(request, device)
    document: dict[str, Any] = dict.fromkeys(TuneResult.model_fields)
    document |= {"status": STATUS[type(error)], "page": str(page) if page.exists() else None}
    if (folder / "ledger.jsonl").exists():
        found = read_findings(folder, None)
        document |= _counts(found, ended=not isinstance(error, Interrupted)) | _effort(found)
    return document | {"error": error.what, "way_out": error.way_out}


def _counts(found: Findings, *, ended: bool) -> dict[str, Any]:
    """Return trials and times; a run that was cut off knows only what its measurements took."""
    spent = sum(trial.seconds for trial in found.trials)
    spent += sum(sample.seconds for sample in found.samples)
    end = (found.end or {}) if ended else {"seconds": round(spent, 1)}
    told = ("seconds", "share_in_pipeline", "overhead_seconds_per_trial", "rank_correlation")
    return {
        "trials": len(found.trials),
        "failed_trials": sum(trial.outcome.kind == "failed" for trial in found.trials),
        "skipped": len(found.skipped),
    } | {name: end.get(name) for name in told}


def _effort(found: Findings) -> dict[str, Any]:
    """Return the figures of the plan that came nearest, on unseen prompts where it was tested."""
    if found.noise is None:
        return {}
    reference, trial = found.noise.reference_seconds, found.trial
    baseline = Quantity(value=reference, unit="s")
    if trial is None or trial.measured is None:
        return {"baseline": baseline}
    score = found.scores[trial.number]
    seconds, lpips = Quantity(value=score.seconds, unit="s"), score.lpips
    distance = None if lpips is None else Quantity(value=lpips, unit="LPIPS")
    unseen = certified(found) if found.verdict_of(trial.plan) else None
    if unseen is not None:
        seconds = Quantity(value=unseen.seconds, upper=unseen.seconds_upper, unit="s")
        distance = Quantity(value=unseen.lpips, upper=unseen.lpips_upper, unit="LPIPS")
    return {
        "plan": str(trial.plan), "speedup": round(reference / seconds.value, 3),
        "latency": seconds, "lpips": distance, "baseline": baseline,
        "memory": Quantity(value=trial.measured.memory_bytes, unit="bytes"),
    }  # fmt: skip
