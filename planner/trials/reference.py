"""Reference calls in the worker: what calibrations render, and what its steps show to probes."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.hooks.clock import StepClock
from planner.hooks.recorder import Probe, Recorder
from planner.passes import registry
from planner.plans.plan import Plan


class Telemetries(dict[tuple[Plan, str], Telemetry]):
    """Telemetry by the plan that calls ran under and a hash of their prompts."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[tuple[Plan, str]] = set()

    def news(self) -> tuple[tuple[Plan, Telemetry], ...]:
        """Return what was recorded since this was last asked, each with its plan."""
        new = [key for key in self if key not in self._told]
        self._told.update(new)
        return tuple((key[0], self[key]) for key in new)


class ReferenceCalls:
    """Calls on the calibration prompts under one prefix of a plan, recorded once for all.

    `memo` keeps the telemetry by what the calls depend on, which is `key`.
    """

    def __init__(
        self, pipeline: Any, clock: StepClock, calls: Callable[[], None], case: Case,
        memo: MutableMapping[Any, Telemetry], key: Any,
    ) -> None:  # fmt: skip
        self._pipeline, self._clock, self._calls = pipeline, clock, calls
        self._case, self._memo, self._key = case, memo, key

    def render(self) -> None:
        """Run the calls."""
        self._calls()

    def telemetry(self) -> Telemetry:
        """Return what the calls show. Raises `TrialFailed` where they have no two steps."""
        if self._key not in self._memo:
            with Recorder(self._pipeline, self._clock, probes(self._case)) as recorder:
                self._calls()
                self._memo[self._key] = recorder.telemetry()
        return self._memo[self._key]


def probes(case: Case) -> dict[str, Probe]:
    """Return by pass what it looks at, of every pass that is legal in this case by itself."""
    found = {}
    for one in registry.all_passes():
        if one.probe is not None and not one.missing(case):
            found[one.name] = one.probe
    return found
