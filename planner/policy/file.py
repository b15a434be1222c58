"""The policy as a file: what was concluded, for which case, on what evidence.

Reading executes nothing, needs no torch, and imports only the passes that the policy names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from planner import strict_yaml
from planner.case.case import Case
from planner.case.evidence import Evidence, Prediction
from planner.case.goal import Goal
from planner.case.noun import Noun, digest
from planner.errors import InvalidFile, UsageError
from planner.passes import registry
from planner.passes.base import Artifact
from planner.plans.plan import Plan, PlannedPass
from planner.policy import artifacts, atomic
from planner.policy.asked import AskedGoal, read_goal, write_goal
from planner.policy.claim import API, Claim, PolicyPass, Provenance, Sha, Status, WrittenPass
from planner.policy.schema import NAME, draft7
from planner.policy.strict import RESTORE, parsed
from planner.policy.summary import summary
from planner.policy.text import to_yaml

_HEAD = f"""\
# yaml-language-server: $schema=../../{NAME}
# Written by planner: `planner show` explains it, `planner diff` compares it. The digest at the
# end fits no edited file. For help in editors: planner schema --out policies/{NAME}
"""

class PolicyFile(Claim):
    """A plan with the case it is for, the goal as asked, its evidence and its provenance."""

    goal: Goal
    plan: tuple[PolicyPass, ...]

    @classmethod
    def of(
        cls,
        plan: Plan,
        *,
        status: Status,
        goal: Goal,
        case: Case,
        provenance: Provenance,
        evidence: Evidence | None = None,
        prediction: Prediction | None = None,
        artifacts: Mapping[str, Artifact] | None = None,
    ) -> PolicyFile:
        """Make a policy from a plan and its artifacts by pass name, and sum it up in a line."""
        learned = artifacts or {}
        passes = tuple(
            PolicyPass(name=p.name, settings=p.settings, artifact=learned.get(p.name))
            for p in plan.passes
        )
        line = summary(str(plan), goal, evidence, prediction)
        return cls(status=status, summary=line, goal=goal, plan=passes, case=case,
                   evidence=evidence, prediction=prediction, provenance=provenance)  # fmt: skip

    def as_plan(self) -> Plan:
        """Return the canonical plan."""
        return Plan.of(self.plan)

    def artifacts(self) -> dict[str, Artifact]:
        """Return what calibrations learned, by pass name."""
        return {p.name: p.artifact for p in self.plan if p.artifact is not None}

    def digest(self) -> str:
        """Return the sha256 that stands at the end of this policy's file."""
        return digest(_body(self))


class Document(Claim):
    """A policy exactly as its file says it: the source of the published schema."""

    goal: AskedGoal
    plan: tuple[WrittenPass, ...]
    seal: Sha = Field(alias="digest")


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 7) of a policy file."""
    found = draft7(Document, "A policy of planner")
    found["required"] = sorted({*found["required"], "apiVersion", "kind"})
    return found


def schema_text() -> str:
    """Return the schema as the text of its file."""
    return json.dumps(schema(), indent=2) + "\n"


def document(policy: PolicyFile) -> dict[str, Any]:
    """Return what a policy's file says, as plain data in a reader's order."""
    body = _body(policy)
    return body | {"digest": digest(body)}


def dump(policy: PolicyFile) -> str:
    """Return the text of a policy: the same policy, the same bytes."""
    return _HEAD + to_yaml(document(policy))


def write_policy(policy: PolicyFile, path: Path) -> None:
    """Write a policy, its long artifacts first; what was there before stays whole until the end.

    Raises `UsageError` where the folder cannot be written to, `PlannerError` on a full disk.
    """
    for learned in policy.artifacts().values():
        if artifacts.is_long(learned):
            content = artifacts.encode(learned)
            atomic.replace(path.parent / artifacts.file_name(content), content)
    atomic.replace(path, dump(policy).encode())


def read_policy(path: Path) -> PolicyFile:
    """Read a policy and believe nothing: syntax, keys, types, digest, passes, artifacts.

    Raises `UsageError` where there is no such file, else `InvalidFile` naming file and place.
    """
    where = str(path)
    body = strict_yaml.read(path, what="a policy")
    _check_version(body, where)
    written = parsed(Document, body, where=where)
    del body["digest"]
    if written.seal != digest(body):
        problem = f"{where} was edited by hand or damaged: its digest does not fit"
        raise InvalidFile(problem, value=written.seal, way_out=RESTORE)
    _check_plan(written, where)
    return _policy(written, path)


def _check_version(body: Mapping[str, Any], where: str) -> None:
    """Tell a newer policy, and what is no policy at all, from a damaged one."""
    version = body.get("apiVersion")
    if version is None:
        way_out = "give a file that `planner tune` wrote"
        raise InvalidFile(f"{where} is no policy: it has no apiVersion", value=None,
                          way_out=way_out)  # fmt: skip
    if version != API:
        way_out = "upgrade planner, or tune again with this release"
        raise InvalidFile(f"{where} is of version {version!r}; this planner reads {API}",
                          value=version, way_out=way_out)  # fmt: skip


def _check_plan(found: Document, where: str) -> None:
    """Hold the written passes against the installed ones: names, order and settings."""
    written = tuple(PlannedPass(name=p.name, settings=p.settings) for p in found.plan)
    try:
        plan = Plan.of(written)
    except UsageError as error:
        problem = f"{where}: {error.what}"
        raise InvalidFile(problem, value=error.value, way_out=error.way_out) from error
    names = [p.name for p in written]
    if names != list(plan.names):
        problem = f"{where}: the passes stand in the order {', '.join(names)}"
        way_out = f"they are put on as {', '.join(plan.names)}; {RESTORE}"
        raise InvalidFile(problem, value=names, way_out=way_out)
    _check_settings(written, plan, where)
    for entry in found.plan:
        learns = registry.learns(entry.name, entry.settings)
        if learns and entry.artifact is None and found.status != "predicted":
            problem = f"{where}: {entry.name} has no artifact, which it cannot do without"
            raise InvalidFile(problem, value=entry.name, way_out=RESTORE)


def _check_settings(written: Sequence[PlannedPass], plan: Plan, where: str) -> None:
    """Refuse what would be read as another value than was written, such as "20" for 20."""
    for entry in written:
        meant = plan.settings(entry.name)
        for key, value in entry.settings.items():
            if meant[key] != value or type(meant[key]) is not type(value):
                problem = f"{where}: {entry.name}.{key} is {value!r}, which means {meant[key]!r}"
                raise InvalidFile(problem, value=value, way_out=RESTORE)


def _policy(found: Document, path: Path) -> PolicyFile:
    """Return what a document means, its long artifacts read from beside it."""
    passes = []
    for entry in found.plan:
        learned = entry.artifact
        if isinstance(learned, str):
            learned = artifacts.read(path.parent / learned)
        passes.append(PolicyPass(name=entry.name, settings=entry.settings, artifact=learned))
    return PolicyFile(
        status=found.status, summary=found.summary, case=found.case,
        evidence=found.evidence, prediction=found.prediction, provenance=found.provenance,
        goal=read_goal(found.goal, where=str(path)), plan=tuple(passes),
    )  # fmt: skip


def _body(policy: PolicyFile) -> dict[str, Any]:
    """Return the document less its digest."""
    grounds = {"evidence": policy.evidence, "prediction": policy.prediction}
    return {
        "apiVersion": policy.api_version,
        "kind": policy.kind,
        "status": policy.status,
        "summary": policy.summary,
        "goal": _plain(write_goal(policy.goal)),
        "plan": [_plain(_written(entry)) for entry in policy.plan],
        "case": _plain(policy.case),
        **{key: _plain(value) for key, value in grounds.items() if value is not None},
        "provenance": _plain(policy.provenance),
    }


def _written(entry: PolicyPass) -> WrittenPass:
    learned: Artifact | str | None = entry.artifact
    if entry.artifact is not None and artifacts.is_long(entry.artifact):
        learned = artifacts.file_name(artifacts.encode(entry.artifact))
    return WrittenPass(name=entry.name, settings=entry.settings, artifact=learned)


def _plain(value: Any) -> Any:
    """Return JSON data: nouns without the fields that are None, lists in the place of tuples."""
    if isinstance(value, Noun):
        items = ((name, getattr(value, name)) for name in type(value).model_fields)
        return {name: _plain(inner) for name, inner in items if inner is not None}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
