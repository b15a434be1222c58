"""One study's state on disk: ledger, calibrated artifacts, images, and the time that is left.

Everything here is rebuilt from the ledger, so that a study goes on after any kind of death with
nothing measured twice.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

from planner.case.case import Case
from planner.case.device import Device
from planner.case.prompts import Sample
from planner.errors import InvalidFile, UsageError
from planner.passes import registry
from planner.passes.base import Artifact
from planner.plans.plan import Plan
from planner.trials.ledger import Ledger
from planner.trials.protocol import Put
from planner.trials.trial import Trial
from planner.tuning.recordings import Recordings
from planner.tuning.request import TuneRequest, goal_slug


class Progress(Protocol):
    """Where a run reports to: one line now and then, and a bar."""

    def say(self, line: str) -> None:
        """Show one line."""

    def tick(self, phase: str, done: float, of: float, incumbent: str) -> None:
        """Show how far it is (seconds of a search, rounds of a certificate) and the best plan."""


class Session:
    """The ledger of one study with what can be derived from it.

    `folder` is <out>/.planner/<model>/<device>/<goal>/; `began` is when this run did, on the
    monotonic clock: starting a worker and loading are part of it.
    """

    def __init__(
        self, ledger: Ledger, request: TuneRequest, folder: Path, began: float | None = None
    ) -> None:
        self.ledger, self.request, self.folder = ledger, request, folder
        self._began = time.monotonic() if began is None else began
        self._before, self._known = self.spent(), len(ledger.trials())
        self.recordings = Recordings(self.folder)
        self._artifacts = {a["key"]: a["artifact"] for a in ledger.bodies("artifact")}

    @classmethod
    def begin(
        cls, request: TuneRequest, case: Case, facts: dict[str, Any], *, resume: bool, fresh: bool,
        began: float | None = None,
    ) -> Session:  # fmt: skip
        """Open the study: a new one, the same one again (`resume`), or afresh beside the old.

        Raises `UsageError` when a study exists and neither was asked for, or when the one that
        exists is of another case or question; each difference is named.
        """
        folder = study_folder(request, case.device)
        path = folder / "ledger.jsonl"
        body = _identity(request, case) | facts
        if not (resume and path.exists()):
            ledger = Ledger.create(path, body, fresh=fresh)
            _set_aside(folder / "images")
            for path in folder.glob("telemetry-*.json"):
                path.unlink()  # of another pipeline, perhaps; it takes a few calls to record
            return cls(ledger, request, folder, began)
        ledger = Ledger.open(path)
        found = differences(_identity(request, case), ledger.study)
        if found:
            ledger.close()
            raise UsageError(
                f"the study in {folder} is another one: " + "; ".join(found[:6]),
                value=str(folder),
                way_out="ask for the same, or start over with --fresh",
            )
        session = cls(ledger, request, folder, began)
        for body in ledger.lost():
            ledger.append("lost", {"number": body["number"], "plan": body["plan"]})
        return session

    def spent(self) -> float:
        """Return the seconds that finished measurements took, over all runs of this study."""
        trials = sum(trial.seconds for trial in self.ledger.trials())
        return trials + sum(sample.seconds for sample in self.ledger.samples())

    @property
    def images(self) -> Path:
        """Return the folder of rendered images: baseline/ and one per plan."""
        return self.folder / "images"

    @property
    def this_run(self) -> float:
        """Return the seconds since this run began."""
        return time.monotonic() - self._began

    @property
    def elapsed(self) -> float:
        """Return the seconds of this run plus what earlier runs measured."""
        return self._before + self.this_run

    @property
    def next_number(self) -> int:
        """Return the number of the next trial; a lost one's number is not used again."""
        return 1 + max((body["number"] for body in self.ledger.bodies("start")), default=-1)

    def artifacts(self, plan: Plan) -> dict[str, Artifact]:
        """Return what calibrations have learned for this plan's passes, each for its prefix."""
        found = {one: self._artifacts.get(_key(plan, one.name), {}) for one in plan.passes}
        return {one.name: learned for one, learned in found.items()
                if learned and registry.get(one.name).serves(learned, one.parsed())}  # fmt: skip

    def learned(self, plan: Plan, put: Put) -> None:
        """Keep what calibrations of this plan returned, and what their reference calls showed."""
        for prefix, telemetry in put.recorded:
            self.recordings.keep(prefix, telemetry)
        for name, artifact in put.artifacts.items():
            key = _key(plan, name)
            if registry.get(name).calibrate is not None and self._artifacts.get(key) != artifact:
                self._artifacts[key] = artifact
                self.ledger.append("artifact", {"key": key, "pass": name, "artifact": artifact})

    def trials(self) -> list[Trial]:
        """Return the finished trials."""
        return self.ledger.trials()

    @property
    def trials_of_this_run(self) -> int:
        """Return how many trials this run has finished."""
        return len(self.ledger.trials()) - self._known

    def keep(self, sample: Sample, role: str) -> Sample:
        """Write one finished sample under a role."""
        named = sample.model_copy(update={"role": role})
        self.ledger.append("sample", named.model_dump(mode="json"))
        return named


def _set_aside(images: Path) -> None:
    """Keep an older study's images beside the new ones: a reference is never overwritten."""
    k = 1
    while images.exists():
        spare = images.with_name(f"{images.name}.old-{k}")
        if not spare.exists():
            images.rename(spare)
        k += 1


def study_folder(request: TuneRequest, device: Device) -> Path:
    """Return where a study of this request on this device lies."""
    where = Path(request.label) / device.slug / goal_slug(request.goal)
    return request.out / ".planner" / where


def openings(request: TuneRequest, device: Device) -> int:
    """Return how often these certification prompts have been opened before, in this folder.

    Counts finalists written by finished or abandoned studies of any goal that share a text with
    these prompts, whatever the seed of its latents: each opening shows something about them, so
    that a later one must be held to a stricter level. A damaged ledger counts as one opening,
    since what it held cannot be known.
    """
    root = study_folder(request, device).parent
    mine = {prompt.text for prompt in request.split.certify}
    count = 0
    for path in sorted(root.glob("*/ledger.jsonl*")):
        if path.name.endswith(".lock") or ".torn" in path.name:
            continue  # a torn ledger's copy holds what its repaired original holds
        try:
            ledger = Ledger.read(path)
            theirs = ledger.study["request"]["split"]["certify"]
        except InvalidFile:
            count += 1
        else:
            shared = any(prompt["text"] in mine for prompt in theirs)
            count += shared * len(ledger.bodies("finalists"))
    return count


def differences(wanted: dict[str, Any], found: dict[str, Any], at: str = "") -> list[str]:
    """Return one sentence for every leaf in which two nested mappings differ."""
    said: list[str] = []
    for key, value in wanted.items():
        where = f"{at}.{key}" if at else key
        other = found.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            said += differences(value, other, where)
        elif value != other:
            said.append(f"{where} is {_brief(value)} now and was {_brief(other)}")
    return said


def _identity(request: TuneRequest, case: Case) -> dict[str, Any]:
    """Return what two runs must share to be one study."""
    kept = {"goal", "split", "with_passes", "without_passes", "domains", "sampler", "seed"}
    asked = request.model_dump(mode="json", include=kept)
    return {"case": case.model_dump(mode="json"), "request": asked}


def _key(plan: Plan, name: str) -> str:
    return f"{name}@{plan.before(name).digest()[:16]}"


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "…"
