"""Runs a worker for the tuner: deadlines, respawns, and where the wall time went."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

from planner.case.case import Case
from planner.case.noun import Noun
from planner.case.prompts import Prompt, Sample
from planner.case.telemetry import Telemetry
from planner.case.workload import Workload
from planner.errors import PlannerError, UsageError
from planner.passes.base import Artifact
from planner.plans.plan import BASELINE, Plan
from planner.run.pipeline import PipelineSource
from planner.trials.process import WorkerProcess
from planner.trials.protocol import (
    Load,
    Loaded,
    PutOn,
    Record,
    Recorded,
    Refused,
    Render,
    Rendered,
    Which,
)
from planner.trials.protocol import Put as Put

_Reply = TypeVar("_Reply", Loaded, Put, Rendered, Recorded)


class _Current(NamedTuple):
    """The plan that is wanted on, and how it was asked for."""

    plan: Plan
    prompts: tuple[Prompt, ...]
    deadline: float
    put: Put


class Supervisor:
    """One worker at a time, loaded with a pipeline, replaced when it dies or is spoiled.

    Use it as a context manager: entering starts the worker and loads, leaving ends it with all
    that it started. Every failure of a plan is a `TrialFailed` with its evidence as `value`
    (stages apply, calibrate, warm, render, guard, observe, memory, timeout, crash); the next
    request gets a fresh worker where that is needed, with the current plan put on again.

    `load_seconds` is how long the last load took, `restarts` how often the worker was replaced.
    `pipeline_seconds` went into steady pipeline calls that came back as samples,
    `overhead_seconds` into everything else in here: starting, loading, putting on, calibrating,
    first calls, distances, image files, and whatever failed.
    """

    case: Case
    _scratch: tempfile.TemporaryDirectory[str]

    def __init__(
        self,
        source: PipelineSource,
        workload: Workload,
        images: Path,
        *,
        log: Path,
        threads: int | None = None,
        load_deadline: float = 900.0,
    ) -> None:
        """Describe the worker; `threads` None leaves torch its own choice for this machine."""
        self.load_seconds = 0.0
        self.restarts = 0
        self.pipeline_seconds = self.overhead_seconds = 0.0
        self._load = Load(source=source, workload=workload, images=str(images.absolute()))
        self._log = log
        self._environment = _environment(source, threads)
        self._load_deadline = load_deadline
        self._process: WorkerProcess | None = None
        self._current: _Current | None = None
        self._on = False
        self._cold = False
        self._counting = False

    @property
    def pid(self) -> int | None:
        """Return the process number of the worker, or None where none runs."""
        return self._process.pid if self._process is not None and self._process.alive else None

    def put(
        self,
        plan: Plan,
        artifacts: Mapping[str, Artifact],
        prompts: Sequence[Prompt],
        deadline: float,
        *,
        as_deployed: bool = False,
    ) -> Put:
        """Put a plan on in place of the one before, and run it once on the first prompts.

        `as_deployed` does so in a fresh worker in which nothing has been compiled or packed yet,
        and runs it until two calls agree: what it then says of starting up holds for a user.
        Passes that calibrate and have no artifact given learn one from all the prompts.
        Raises `TrialFailed`; after `deadline` seconds (a restart does not count) with stage
        timeout.
        """
        spoiled = self._on and self._current is not None and not self._current.put.reversible
        if spoiled or as_deployed:
            self._stop()
        self._current = None
        if as_deployed:
            compiled = tempfile.mkdtemp(dir=self._scratch.name)
            self._environment |= {"TORCHINDUCTOR_CACHE_DIR": compiled}
        put = self._put(plan, artifacts, tuple(prompts), deadline, settle=as_deployed)
        self._current = _Current(plan, tuple(prompts), deadline, put)
        return put

    def render(
        self, which: Which, prompts: Sequence[Prompt], deadline: float, save: bool = True,
        *, counted: bool = True,
    ) -> list[Sample]:  # fmt: skip
        """Time one call for every batch of prompts, under the plan or untouched.

        Samples bear no role; those of a plan say how far its images are from the untouched
        ones, where these lie in the images folder. Untouched images are kept there once; later
        ones are compared with them. Memory is the peak of the call, or of the plan's
        first one where that is higher. Warming calls are not `counted`: they are overhead.
        In a worker that was replaced an untouched call is warmed first. Raises `TrialFailed`;
        after `deadline` seconds for all calls with stage timeout.
        """
        process = self._prepare(which)
        if which == "baseline" and self._cold:
            self._cold = False
            first = prompts[: self.case.workload.batch_size]
            self.render("baseline", first, deadline, save=False, counted=False)
        request = Render(which=which, prompts=tuple(prompts), save=save)
        plan = self._current.plan if which == "candidate" and self._current else BASELINE
        with self._overhead():
            doing = f"rendering with '{plan}'"
            samples = list(self._ask(process, request, deadline, doing, Rendered).samples)
        steady = sum(sample.seconds for sample in samples) if counted else 0.0
        self.pipeline_seconds += steady
        self.overhead_seconds -= steady
        return samples

    def record(self, plan: Plan, prompts: Sequence[Prompt], deadline: float) -> Telemetry:
        """Return what reference calls under a plan show to the passes; no plan is on after it.

        Raises `TrialFailed`; after `deadline` seconds with stage timeout.
        """
        self._current, self._on = None, False
        process, request = self._ready(), Record(plan=plan, prompts=tuple(prompts))
        with self._overhead():
            doing = f"recording '{plan}'"
            return self._ask(process, request, deadline, doing, Recorded).telemetry

    def __enter__(self) -> Self:
        self._ready()
        self._scratch = tempfile.TemporaryDirectory(prefix="planner-")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()
        self._scratch.cleanup()

    def _prepare(self, which: Which) -> WorkerProcess:
        """Return a worker in the state that a render needs."""
        current = self._current
        if which == "candidate" and current is None:
            raise UsageError("no plan is on", way_out="put one on before rendering with it")
        if which == "baseline" and self._on and current and not current.put.reversible:
            self._stop()  # the untouched pipeline is a freshly loaded one, then
        process = self._ready()
        if which == "candidate" and current and not self._on:
            self._put(current.plan, current.put.artifacts, current.prompts, current.deadline)
        return process

    def _put(
        self,
        plan: Plan,
        artifacts: Mapping[str, Artifact],
        prompts: tuple[Prompt, ...],
        deadline: float,
        settle: bool = False,
    ) -> Put:
        given = {name: dict(artifact) for name, artifact in artifacts.items()}
        request = PutOn(plan=plan, artifacts=given, prompts=prompts, settle=settle)
        process = self._ready()
        self._on = False
        with self._overhead():
            put = self._ask(process, request, deadline, f"putting on '{plan}'", Put)
        self._on = True
        return put

    def _ready(self) -> WorkerProcess:
        """Return the worker, or start one and load; another pipeline than before is refused."""
        if self._process is not None and self._process.alive:
            return self._process
        again = hasattr(self, "case")
        self.restarts += again
        self._on, self._cold = False, again
        with self._overhead():
            self._process = WorkerProcess(self._log, self._environment)
            doing = f"loading {self._load.source.model!r}"
            loaded = self._ask(self._process, self._load, self._load_deadline, doing, Loaded)
        if again:
            require_same(self.case, loaded.case)
        self.case, self.load_seconds = loaded.case, loaded.seconds
        return self._process

    def _ask(
        self, process: WorkerProcess, request: Noun, deadline: float, doing: str,
        kind: type[_Reply],
    ) -> _Reply:  # fmt: skip
        reply = process.ask(request, deadline, doing)
        if isinstance(reply, kind):
            return reply
        if not isinstance(reply, Refused):
            raise PlannerError(f"the worker answered {reply.kind!r} while {doing}",
                               value=reply.kind, way_out="please report it")  # fmt: skip
        if reply.spoiled:
            self._stop()
        raise reply.unpack()

    def _stop(self) -> None:
        self._on = False
        if self._process is not None:
            with self._overhead():
                self._process.stop()
            self._process = None

    @contextmanager
    def _overhead(self) -> Iterator[None]:
        """Count the time inside as overhead; inside another count it does nothing."""
        outermost, self._counting = not self._counting, True
        began = time.monotonic()
        try:
            yield
        finally:
            if outermost:
                self._counting = False
                self.overhead_seconds += time.monotonic() - began


def require_same(before: Case, now: Case) -> None:
    """Refuse to go on with another pipeline than the one that was measured so far.

    Raises `PlannerError`: a function that draws new weights at every load cannot be tuned.
    """
    if now.model != before.model:
        raise PlannerError(
            f"{now.model.id!r} was another pipeline when it was loaded again",
            value=now.model.id,
            way_out="let it load the same weights every time, and start over with --fresh",
        )


def _environment(source: PipelineSource, threads: int | None) -> dict[str, str]:
    """Return the worker's environment: ours, quiet OpenMP threads, offline where all is local.

    A thread that spins while it waits takes the processor from the others: with active waiting,
    timings on a shared CPU say little.
    """
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} | dict(os.environ)
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    hub_or_function = any(mark in source.model for mark in "/:")
    if not hub_or_function or Path(source.model).expanduser().is_dir():
        environment |= {"HF_HUB_OFFLINE": "1"}
    return environment
