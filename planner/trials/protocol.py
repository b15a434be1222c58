"""What supervisor and worker say to each other: one JSON line a message, over two pipes.

The supervisor asks one thing at a time and gets one reply; the worker's stdout and stderr carry
none of it, since libraries print there.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from planner import errors
from planner.case.case import Case
from planner.case.noun import Noun
from planner.case.prompts import Prompt, Sample
from planner.case.telemetry import Telemetry
from planner.case.workload import Workload
from planner.errors import PlannerError, TrialFailed
from planner.plans.plan import Plan
from planner.run.pipeline import PipelineSource

Which = Literal["candidate", "baseline"]


class Load(Noun):
    """Ask for the pipeline to be loaded; images go below the folder `images`."""

    kind: Literal["load"] = "load"
    source: PipelineSource
    workload: Workload
    images: str


class PutOn(Noun):
    """Ask for a plan to be put on in place of the one before, calibrated where need be.

    `settle` asks for more calls than one, until two of them agree.
    """

    kind: Literal["put_on"] = "put_on"
    plan: Plan
    artifacts: dict[str, dict[str, Any]] = {}
    prompts: tuple[Prompt, ...]
    settle: bool = False


class Render(Noun):
    """Ask for timed calls under the plan that is on, or of the untouched pipeline."""

    kind: Literal["render"] = "render"
    which: Which
    prompts: tuple[Prompt, ...]
    save: bool = True


class Record(Noun):
    """Ask for what reference calls under a plan show to the passes' probes."""

    kind: Literal["record"] = "record"
    plan: Plan
    prompts: tuple[Prompt, ...]


class Loaded(Noun):
    """The pipeline is there: what it is, and the seconds that loading it took."""

    kind: Literal["loaded"] = "loaded"
    case: Case
    seconds: float


class Put(Noun):
    """A plan is on and has run once.

    `apply_seconds` went into putting it on, `calibrate_seconds` into calibrations before that,
    `first_call_seconds` into the first call, which compiles and warms. `artifacts` are those
    given and those learned now, by pass; `recorded` is what reference calls of calibrations showed,
    each with the plan that they ran under; `reversible` tells whether it can be taken off again.
    """

    kind: Literal["put"] = "put"
    apply_seconds: float
    calibrate_seconds: float = 0.0
    first_call_seconds: float
    artifacts: dict[str, dict[str, Any]] = {}
    recorded: tuple[tuple[Plan, Telemetry], ...] = ()
    reversible: bool = True


class Rendered(Noun):
    """One sample for every timed call."""

    kind: Literal["rendered"] = "rendered"
    samples: tuple[Sample, ...]


class Recorded(Noun):
    """What the steps of reference calls show."""

    kind: Literal["recorded"] = "recorded"
    telemetry: Telemetry


class Refused(Noun):
    """An error, to be raised again on the other side.

    `error` is its class in errors.py; `spoiled` tells that the worker's pipeline can no longer
    be trusted, so that the next request needs a fresh worker.
    """

    kind: Literal["refused"] = "refused"
    error: str
    stage: str = ""
    what: str
    value: str
    way_out: str
    spoiled: bool = False

    @classmethod
    def of(cls, error: PlannerError, *, spoiled: bool = False) -> Refused:
        """Pack an error."""
        stage = error.stage if isinstance(error, TrialFailed) else ""
        value = "" if error.value is None else str(error.value)
        return cls(error=type(error).__name__, stage=stage, what=error.what, value=value,
                   way_out=error.way_out, spoiled=spoiled)  # fmt: skip

    def unpack(self) -> PlannerError:
        """Return the error as it was, its value as text."""
        if self.error == TrialFailed.__name__:
            return TrialFailed(self.what, stage=self.stage, value=self.value, way_out=self.way_out)
        kind: type[PlannerError] = getattr(errors, self.error)
        return kind(self.what, value=self.value, way_out=self.way_out)


Answer = Loaded | Put | Rendered | Recorded | Refused
"""What a worker may reply."""

Request = Annotated[Load | PutOn | Render | Record, Field(discriminator="kind")]
Reply = Annotated[Answer, Field(discriminator="kind")]

REQUEST: TypeAdapter[Load | PutOn | Render | Record] = TypeAdapter(Request)
REPLY: TypeAdapter[Answer] = TypeAdapter(Reply)


def encode(message: Noun) -> bytes:
    """Return a message as one line."""
    return message.model_dump_json().encode() + b"\n"
