"""Makes the policy file of a finished study."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import planner
from planner.case.case import Case
from planner.case.evidence import Evidence
from planner.case.goal import Goal
from planner.case.noun import Noun
from planner.case.prompts import hash_prompts
from planner.errors import PlannerError, UsageError
from planner.passes import registry
from planner.passes.base import Artifact
from planner.plans.plan import Plan
from planner.policy.claim import Provenance, Status
from planner.policy.file import PolicyFile, read_policy
from planner.tuning.request import TuneRequest
from planner.tuning.session import Session, differences


class Conclusion(Noun):
    """The plan that a study settled on, with what supports it."""

    plan: Plan
    status: Status
    goal: Goal
    evidence: Evidence


def make_policy(
    conclusion: Conclusion, case: Case, session: Session, artifacts: Mapping[str, Artifact]
) -> PolicyFile:
    """Put plan, case, evidence and provenance together; of artifacts what the plan needs."""
    request = session.request
    # The prompts' hash belongs to the certificate and the provenance; the case that a policy is
    # matched against is the call alone.
    provenance = Provenance(
        planner=planner.__version__,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        # As the study was begun: a resumed run's own command would ask for a study that exists.
        command=session.ledger.study.get("command") or request.command,
        commit=commit(),
        seeds={"search": request.seed},
        prompts={
            "search": hash_prompts(request.split.search),
            "certify": request.split.certify_hash,
        },
        versions=dict(case.device.libraries),
    )
    return PolicyFile.of(
        conclusion.plan, status=conclusion.status, goal=conclusion.goal, case=case,
        provenance=provenance, evidence=conclusion.evidence,
        artifacts=_needed(conclusion.plan, artifacts),
    )  # fmt: skip


def _needed(plan: Plan, artifacts: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """Return of each pass's artifact what its settings in the plan need."""
    found = {}
    for name, learned in artifacts.items():
        needed = registry.get(name).needed
        settings = next(one.parsed() for one in plan.passes if one.name == name)
        found[name] = needed(learned, settings) if needed else learned
    return found


def refuse_to_replace(path: Path, request: TuneRequest) -> None:
    """Refuse to write a policy over that of another model or call.

    Raises `UsageError` that names every difference; a file that is no policy may be replaced.
    """
    try:
        case = read_policy(path).case
    except PlannerError:
        return
    workload = request.workload
    wanted = {"model": request.source.model, "batch": workload.batch_size, "call": workload.call}
    there = {"model": case.model.id, "batch": case.workload.batch_size, "call": case.workload.call}
    found = differences(wanted, there)
    if found:
        raise UsageError(
            f"{path} is the policy of something else: " + "; ".join(found[:6]), value=str(path),
            way_out="choose another folder with --out, or replace it with --fresh",
        )  # fmt: skip


def commit() -> str | None:
    """Return the commit of a source checkout, with + where files differ; None elsewhere."""
    root = Path(planner.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None  # no git here: provenance says less, nothing else changes


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()
