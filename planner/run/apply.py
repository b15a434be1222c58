"""Puts a plan on a live pipeline and takes it off: one way for worker, certificate, deployment.

A handle swaps the pipeline's class for a subclass of the same name whose call goes through the
handle, so that users call their pipeline as before.
"""

from __future__ import annotations

import functools
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType, TracebackType
from typing import Any

from planner.case.case import Case
from planner.case.hit_rate import Interval
from planner.errors import PlannerError, TrialFailed, UsageError
from planner.hooks.clock import StepClock
from planner.hooks.residence import settled
from planner.passes import registry
from planner.passes.base import Artifact, Context, Stage, Statistics
from planner.plans.plan import Plan, PlannedPass
from planner.run.calls import departures, merged
from planner.run.expected import Expected, forget

_NO_ARTIFACTS: Mapping[str, Artifact] = MappingProxyType({})


class LeavesCaseWarning(UserWarning):
    """A call under a plan is not the call that the plan was measured for."""


def put_on(
    pipeline: Any,
    plan: Plan,
    case: Case,
    artifacts: Mapping[str, Artifact] = _NO_ARTIFACTS,
    memo: dict[str, Any] | None = None,
    device: str | None = None,
) -> Handle:
    """Put a plan on a pipeline; from then on a plain call of it is the plan's call.

    `artifacts` are what calibrations learned, by pass name; `memo` (one dictionary for each
    pipeline) makes putting the same thing on again cheap. `device` ("cuda") is where the pipeline
    is to run if it is not there yet: passes that move weights bring theirs in and out, the rest
    goes there as a whole. Raises `UsageError` where a plan is on
    already, and `TrialFailed` (stage apply) where a pass fails; what was put on before it is
    then off again.
    """
    handle = Handle(pipeline, plan, case, artifacts, {} if memo is None else memo,
                    device)  # fmt: skip
    handle._put()
    return handle


def handle_of(pipeline: Any) -> Handle | None:
    """Return the handle of the plan that is on this pipeline now, if one is."""
    found: Handle | None = getattr(type(pipeline), "_planner_handle", None)
    return found


class Handle:
    """A plan that is on a pipeline: its statistics, its verdict, and the way off.

    `certified` is True until a call, or the owner of the handle, says otherwise. `call` holds
    the arguments that a plain call gets: the workload's, with those that passes set over them.
    """

    def __init__(
        self, pipeline: Any, plan: Plan, case: Case, artifacts: Mapping[str, Artifact],
        memo: dict[str, Any], device: str | None = None,
    ) -> None:  # fmt: skip
        self.pipeline = pipeline
        self.plan = plan
        self.case = case
        self.certified = True
        self._settings = {entry.name: entry.parsed() for entry in plan.passes}
        self.call: dict[str, Any] = dict(case.workload.call)
        for name, settings in self._settings.items():
            call = registry.get(name).call
            self.call.update(call(settings, case.workload) if call else {})
        self._artifacts, self._memo, self._device = artifacts, memo, device
        self._stack = ExitStack()
        self._contexts: dict[str, Context] = {}
        self._kept: dict[str, dict[str, Any]] = {}
        self._stats: dict[str, Statistics] = {}
        self._warned: set[str] = set()
        self._expected = Expected({})
        self._busy = threading.Lock()
        self._class: type = type(pipeline)
        self._signature = inspect.signature(self._class.__call__)
        self._places = [
            name for name, parameter in self._signature.parameters.items()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ][1:]  # fmt: skip
        self._scheduler: Any = None
        self._planned_scheduler: Any = None
        self._detach: Callable[[], None] = _nothing
        self._on = False

    @property
    def stats(self) -> dict[str, Statistics]:
        """Return each pass's counters after the last call (before one: after putting it on)."""
        return {name: dict(counters) for name, counters in (self._stats or self._live()).items()}

    def complaints(self) -> dict[str, str]:
        """Return, by pass, a sentence why it was inert or wrong in the last call."""
        found = {}
        for name, settings in self._settings.items():
            observe = registry.get(name).observe
            sentence = observe and observe(settings, self.stats.get(name, {}), self.case.workload)
            if sentence:
                found[name] = sentence
        return found

    def expect(self, hit_rates: Mapping[str, Interval], *, strict: bool = False) -> None:
        """Hold later calls against the shares of their forwards that passes should reuse.

        A call outside of one ends certification: it is said in one `UnexpectedReuseWarning`, or,
        `strict`, `PolicyDoesNotFit` is raised in the place of its result.
        """
        known = {name: rate for name, rate in hit_rates.items() if name in self.plan}
        self._expected = Expected(known, strict=strict)

    def remove(self) -> None:
        """Take everything off again, in reverse order; a second call does nothing.

        Raises `UsageError`, and leaves the plan on, where a pass has no honest undo.
        """
        with self._alone():
            self._take_off()
            self._kept.clear()

    @contextmanager
    def suspended(self) -> Iterator[Any]:
        """Give the untouched pipeline inside the block, and put the plan on again after it.

        The pipeline's own call is untouched too: it needs the workload's arguments
        (`reference_call`).
        """
        if not self._on:
            what, way_out = f"plan '{self.plan}' is off already", "put it on before suspending it"
            raise UsageError(what, value=str(self.plan), way_out=way_out)
        with self._alone():
            self._take_off()
            try:
                yield self.pipeline
            finally:
                self._put()

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.remove()

    def _put(self) -> None:
        other = handle_of(self.pipeline)
        if other is not None:
            what = f"this pipeline carries plan '{other.plan}' already"
            way_out = "call remove() on its handle first"
            raise UsageError(what, value=str(self.plan), way_out=way_out)
        clock = StepClock()
        self._contexts = {}
        with ExitStack() as stack:
            placed = [registry.get(entry.name).stage <= Stage.OFFLOAD for entry in self.plan.passes]
            for entry in self.plan.passes[: sum(placed)]:
                stack.callback(self._apply(entry, clock))
            if self._device is not None:
                stack.callback(settled(self.pipeline, self._device))
            for entry in self.plan.passes[sum(placed) :]:
                stack.callback(self._apply(entry, clock))
            # After the passes: one of them may have brought its own scheduler.
            self._planned_scheduler = getattr(self.pipeline, "scheduler", None)
            self._follow(clock)
            stack.callback(self._unfollow)
            self.pipeline.__class__ = self._subclass(clock)
            stack.callback(setattr, self.pipeline, "__class__", self._class)
            self._stack = stack.pop_all()
        self._on = True

    def _follow(self, clock: StepClock) -> None:
        """Count the steps of the scheduler that the pipeline has now."""
        self._unfollow()
        self._scheduler = getattr(self.pipeline, "scheduler", None)
        if self._scheduler is not None:
            self._detach = clock.attach(self._scheduler)

    def _unfollow(self) -> None:
        self._detach()
        self._detach = _nothing

    def _apply(self, entry: PlannedPass, clock: StepClock) -> Callable[[], None]:
        context = Context(
            case=self.case,
            clock=clock,
            plan=tuple(self._settings.items()),
            artifact=self._artifacts.get(entry.name),
            memo=self._memo.setdefault(entry.name, {}),
            kept=self._kept.setdefault(entry.name, {}),
            device=self._device,
        )
        self._contexts[entry.name] = context
        try:
            settings = self._settings[entry.name]
            return registry.get(entry.name).apply(self.pipeline, settings, context)
        except PlannerError:
            raise
        except Exception as error:
            raise TrialFailed(
                f"{entry.name} could not be put on ({type(error).__name__}: {error})",
                stage="apply",
                value=str(entry),
                way_out="leave the pass out, or see `planner graph --why`",
            ) from error

    def _take_off(self) -> None:
        if not self._on:
            return
        fixed = [name for name in self.plan.names if not registry.get(name).reversible]
        if fixed:
            what = f"{fixed[0]} cannot be taken off a pipeline again"
            raise UsageError(what, value=fixed[0], way_out="load the pipeline anew")
        self._on = False
        self._stack.close()

    def _subclass(self, clock: StepClock) -> type:
        original = self._class.__call__
        handle = self

        @functools.wraps(original)
        def call(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
            return handle._run(original, clock, args, kwargs)

        namespace = {"__call__": call, "__module__": self._class.__module__,
                     "__qualname__": self._class.__qualname__, "__doc__": self._class.__doc__,
                     "_planner_handle": self}  # fmt: skip
        return type(self._class.__name__, (self._class,), namespace)

    def _run(self, original: Any, clock: StepClock, args: Any, kwargs: dict[str, Any]) -> Any:
        with self._alone():
            placed = dict(zip(self._places, args, strict=False))
            departed = self._watch(placed | kwargs)
            if getattr(self.pipeline, "scheduler", None) is not self._scheduler:
                self._follow(clock)
            full = merged(self.call, placed | kwargs)
            # Given twice, by place and by name, is the caller's error and stays one.
            named = {k: v for k, v in full.items() if k not in placed or k in kwargs}
            forget(context.statistics for context in self._contexts.values())
            with clock.call():
                try:
                    output = original(self.pipeline, *args, **named)
                finally:
                    self._stats = self._live()
            if not departed and not getattr(self.pipeline, "_interrupt", False):
                found = self._expected.departures(self._stats)
                self.certified = self.certified and not found
                self._expected.say(found)
            return output

    def _watch(self, given: Mapping[str, Any]) -> bool:
        """Warn once for each kind of departure from what was measured; tell if there is one."""
        batch = self.case.workload.batch_size
        found = departures(given, self.call, self._signature, batch)
        if getattr(self.pipeline, "scheduler", None) is not self._planned_scheduler:
            found["scheduler"] = "another scheduler than when the plan was put on"
        for kind in sorted(found.keys() - self._warned):
            self._warned.add(kind)
            warnings.warn(
                f"{found[kind]} is not what plan '{self.plan}' was measured for: "
                "leave it out, or tune for it",
                LeavesCaseWarning,
                stacklevel=4,
            )
        self.certified = self.certified and not found
        return bool(found)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            what = f"a call under plan '{self.plan}' is running on this pipeline"
            way_out = "wait for it, or use one pipeline for each thread"
            raise UsageError(what, value=str(self.plan), way_out=way_out)
        try:
            yield
        finally:
            self._busy.release()

    def _live(self) -> dict[str, Statistics]:
        return {name: dict(context.statistics) for name, context in self._contexts.items()}


def _nothing() -> None:
    """Detach from no scheduler."""
