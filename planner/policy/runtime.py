"""Loads a policy and puts it on a pipeline: `planner.load(path).apply(pipe)`.

Nothing of the search is imported here: no Optuna, no networkx. Until `apply`, no torch either.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.case.hit_rate import Interval
from planner.errors import PolicyDoesNotFit, UsageError
from planner.passes import registry
from planner.policy.claim import Status
from planner.policy.file import PolicyFile, read_policy

if TYPE_CHECKING:
    from planner.case.case import Case
    from planner.plans.plan import Plan
    from planner.run.apply import Handle
    from planner.run.pipeline import PipelineSource


class PolicyWarning(UserWarning):
    """A policy is used outside what it was certified for; the message names every difference."""


def check(path: str | Path) -> Policy:
    """Read a policy and check everything that can be checked without a pipeline, or torch.

    Raises `UsageError` where there is no such file, else `InvalidFile`.
    """
    path = Path(path)
    return Policy(read_policy(path), path)


def load(path: str | Path, *, allow: Sequence[Status] = ("certified", "measured")) -> Policy:
    """Read a policy to apply it; its status must be among `allow`.

    Raises what `check` raises, and `UsageError` for a status that is not allowed: one that
    is merely predicted must be asked for by name.
    """
    policy = check(path)
    if policy.status not in allow:
        words = ", ".join(repr(status) for status in (*allow, policy.status))
        way_out = f"tune for this case, or load it with allow=({words}) or --predicted"
        what = f"{path} is a {policy.status} policy"
        raise UsageError(what, value=policy.status, way_out=way_out)
    return policy


class Policy:
    """A policy that was read from `path`; `file` holds all that it says."""

    def __init__(self, file: PolicyFile, path: Path) -> None:
        self.file = file
        self.path = path
        self.plan: Plan = file.as_plan()

    @property
    def status(self) -> Status:
        """Return what stands behind the plan: certified, measured or predicted."""
        return self.file.status

    def __repr__(self) -> str:
        return f"<Policy {self.path}: {self.status}, {self.plan}>"

    def source(self, model: str | None = None, **where: str | None) -> PipelineSource:
        """Return where to load a pipeline from: `model`, else the policy's if it is catalogued.

        `where` may hold revision, path and device. A policy is a label, never a command: what
        it names beyond the catalogue is neither imported nor downloaded. Raises `UsageError`.
        """
        from planner.catalog.reader import is_embedded
        from planner.run.pipeline import PipelineSource

        label = self.file.case.model.id
        if model is None and not is_embedded(label):
            way_out = f"give --model (for example --model {label}, if you trust it)"
            what = f"{self.path} is for {label!r}, which planner does not load on a policy's word"
            raise UsageError(what, value=label, way_out=way_out)
        kind = self.file.case.device.kind
        device = where.pop("device", None) or ("cpu" if self.places else kind)
        dtype = self.file.case.workload.dtype
        return PipelineSource(model=model or label, dtype=dtype, device=device, **where)

    @property
    def places(self) -> bool:
        """Tell whether a pass moves weights by itself, so that they may wait on the host."""
        owned = (what for name in self.plan.names for what in registry.get(name).owns)
        return any(what.endswith(".place") for what in owned)

    def case_of(self, pipe: Any, device: str | None = None) -> Case:
        """Return the case of a live pipeline under this policy's reference call.

        `device` is where it will run, if it is not there yet.
        """
        from planner.run.pipeline import PipelineSource, case_of

        model = self.file.case.model
        # A label only: the policy never decides what is imported or downloaded.
        source = PipelineSource(model=model.id, revision=model.revision)
        return case_of(pipe, source, self.file.case.workload, device)

    def apply(self, pipe: Any, *, strict: bool = False) -> Handle:
        """Put the plan on a pipeline, which from then on is called as before.

        A pipeline on the CPU is brought to the policy's kind of device by a plan whose passes
        move weights: where it does not fit as a whole, it need not have been there.

        Raises `PolicyDoesNotFit` with every difference where pipeline, weights, adapters,
        capability or libraries are others. What differs from the certified envelope (device,
        driver, versions, threads, dtype) is refused with `strict`, else said in one
        `PolicyWarning`; the handle's `certified` is then False. So it is with a later call in
        which a cache reuses what the policy's evidence does not expect (see `Handle.expect`).
        """
        from planner.policy.match import differences
        from planner.run.apply import put_on

        kind = self.file.case.device.kind
        onto = kind if self.places and pipe.device.type == "cpu" != kind else None
        case = self.case_of(pipe, onto)
        found = differences(self.file, case)
        refused = (*found.must, *found.envelope) if strict else found.must
        if refused:
            what = f"{self.path} does not fit ({len(refused)}): {'; '.join(refused)}"
            way_out = "load what it was made for, or tune for this case"
            raise PolicyDoesNotFit(what, value=refused, way_out=way_out)
        # Warned before anything is put on: where warnings are errors, nothing is left half done.
        if found.envelope:
            how = f"used outside what it was {self.status} for"
            advice = "`planner verify` measures what that changes"
            if self.status == "predicted":
                how, advice = "a prediction", "`planner tune` measures and certifies here"
            warnings.warn(
                f"{self.path} is {how}: {'; '.join(found.envelope)}. {advice}",
                PolicyWarning,
                stacklevel=2,
            )
        handle = put_on(pipe, self.plan, case, self.file.artifacts(), device=onto)
        handle.certified = self.status == "certified" and not found.envelope
        evidence = self.file.evidence
        handle.expect(_anything(self.file) if evidence is None else evidence.reuse, strict=strict)
        return handle


def _anything(predicted: PolicyFile) -> dict[str, Interval]:
    """Return what a prediction must expect of its caches at the least: one forward reused.

    How much they reuse only a measurement tells; one that reuses nothing makes nothing faster.
    """
    workload = predicted.case.workload
    least = 1 / max(1, workload.steps * workload.forwards_per_step)
    owned = {entry.name: registry.get(entry.name).owns for entry in predicted.plan}
    return {name: (least, 1.0) for name, owns in owned.items()
            if any(claim.endswith("_reuse") for claim in owns)}  # fmt: skip
