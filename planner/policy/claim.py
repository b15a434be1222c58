"""What a policy and its file have in common: whose it is, how sure, and what supports it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from planner.case.case import Case
from planner.case.evidence import Evidence, Prediction
from planner.case.noun import Noun, Scalar
from planner.passes.base import Artifact
from planner.plans.plan import PlannedPass

API: Literal["planner/v1"] = "planner/v1"

Status = Literal["certified", "measured", "predicted"]
Sha = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
SidecarName = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}\.safetensors$")]


class Provenance(Noun):
    """Where a policy comes from: release, commit, command, time, seeds and prompt sets.

    `time` is UTC in ISO 8601; `seeds` and `prompts` go by role (search, certify, …), the latter
    as sha256; `versions` are those of the libraries at the time.
    """

    planner: str
    time: str
    command: str = ""
    commit: str | None = None
    study: str | None = None
    seeds: dict[str, int] = {}
    prompts: dict[str, str] = {}
    versions: dict[str, str] = {}
    notes: dict[str, Scalar] = {}


class PolicyPass(PlannedPass):
    """One pass of a policy, and what its calibration learned (None: it needs none)."""

    artifact: Artifact | None = None


class WrittenPass(Noun):
    """A pass as a file names it; a long artifact stands beside the file, named by its sha256."""

    name: str
    settings: dict[str, Any]
    artifact: dict[str, Any] | SidecarName | None = None


class Claim(Noun):
    """What policies and their files have in common: whose, how sure, on what grounds.

    `status` says what stands behind the plan: certified on unseen prompts, measured in a search,
    or predicted only. The first two rest on `evidence`, the last on a `prediction`, never both.
    """

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    api_version: Literal["planner/v1"] = Field(API, alias="apiVersion")
    kind: Literal["Policy"] = "Policy"
    status: Status
    summary: str = ""
    case: Case
    evidence: Evidence | None = None
    prediction: Prediction | None = None
    provenance: Provenance

    @model_validator(mode="after")
    def _supported(self) -> Claim:
        if (self.status == "predicted") == (self.prediction is None):
            needs = "needs a prediction" if self.prediction is None else "has no prediction"
            raise ValueError(f"a {self.status} policy {needs}")
        if (self.status == "predicted") == (self.evidence is not None):
            needs = "needs evidence" if self.evidence is None else "has no evidence"
            raise ValueError(f"a {self.status} policy {needs}")
        certificate = self.evidence.certificate if self.evidence else None
        if self.status == "certified" and (certificate is None or certificate.certified is None):
            raise ValueError("a certified policy needs a certificate that names a plan")
        return self
