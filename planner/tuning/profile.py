"""`planner profile`: what a few reference calls say about every cache, before any search."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from planner.case.case import Case
from planner.case.noun import Noun, Scalar
from planner.case.prompts import Prompt
from planner.case.telemetry import Telemetry
from planner.case.work import Work
from planner.errors import UsageError
from planner.hooks.clock import StepClock
from planner.measure.statistics import quantile
from planner.passes import registry
from planner.passes.base import Context, Domain, Family, Pass
from planner.plans.graph import Graph, build
from planner.plans.plan import Plan
from planner.prediction.cache_simulator import Simulated, deciding, inert, simulate
from planner.trials.supervisor import Supervisor
from planner.tuning.footing import Footing, footing
from planner.tuning.foresight import Foresight
from planner.tuning.prepare import merged, reference, split_of
from planner.tuning.recordings import Recordings
from planner.tuning.session import Progress

POINTS = 9
"""Settings of a cache that are simulated: enough to see its inert end and its cliff."""

_DEADLINE = 3600.0


class Point(Noun):
    """One value of a cache's setting: what it would compute, and the seconds that are predicted."""

    value: float
    simulated: Simulated
    seconds: float | None = None


class CacheProfile(Noun):
    """One cache: the setting that decides, where it changes anything, and what it would do there.

    `low` and `high` are None where the setting changes nothing in the recorded calls. `cliff` is
    the value at which most more is skipped than at the one before it. `changes` are the 10th, 50th
    and 90th percentile of what it looks at from step to step, None where that was not recorded.
    `learned` are the plain numbers of what its calibration learned, such as r2.
    """

    name: str
    setting: str
    default: float
    low: float | None
    high: float | None
    cliff: float | None
    changes: tuple[float, float, float] | None
    points: tuple[Point, ...]
    learned: dict[str, Scalar]


class Profile(Noun):
    """What reference calls of one case show, and what every cache would do in them.

    `blind` are legal caches that no recording tells of, with what their effect alone says.
    """

    case: Case
    under: str
    prompts: int
    reference_seconds: float
    telemetry: Telemetry
    caches: tuple[CacheProfile, ...]
    blind: dict[str, str]
    excluded: dict[str, str]


class _Seen(NamedTuple):
    """Where the profile's numbers come from."""

    graph: Graph
    telemetry: Telemetry
    work: Work | None
    foresight: Foresight | None


def profile(
    options: Mapping[str, Any], progress: Progress, *, calls: int = 3, under: Sequence[str] = ()
) -> Profile:
    """Record reference calls of a model and simulate every cache that is legal on it.

    `options` are those of `planner tune`; `under` names passes that are on, with their defaults,
    while it is recorded: telemetry belongs to what stands before a cache. Raises `UsageError` for
    what cannot be read, and `TrialFailed` where nothing can be recorded.
    """
    asked = merged({name: value for name, value in options.items() if name != "out"})
    source, workload = reference(asked)
    batch, root = workload.batch_size, Path(options.get("out") or ".") / ".planner"
    plan = Plan.of({name: {} for name in under})
    split = split_of(source.model, asked, 0, certify=False, batch=batch)
    prompts = split.search[: calls * batch]
    with tempfile.TemporaryDirectory() as scratch:
        images, log = Path(scratch) / "images", Path(scratch) / "worker.log"
        with Supervisor(source, workload, images, log=log) as worker:
            graph = build(worker.case)
            _refuse(graph, plan)
            began = time.monotonic()
            telemetry = worker.record(plan, prompts, _DEADLINE)
            progress.say(f"recorded {len(telemetry.runs)} calls of {telemetry.steps} steps in "
                         f"{time.monotonic() - began:.0f} s")  # fmt: skip
            seconds = _untouched(worker, prompts[:batch])
            stands = footing(source, worker.case, root, progress)
            case = worker.case
    foresight = Foresight(stands, seconds, Recordings.of(telemetry)) if stands else None
    seen = _Seen(graph, telemetry, _work(stands, plan), foresight)
    found = [_cache(one, seen, plan) for one in graph.legal if one.masks]
    caches = [one for one in graph.legal if one.family is Family.CACHING and not one.masks]
    excluded = {name: why for name, why in graph.excluded.items()
                if registry.get(name).family is Family.CACHING}  # fmt: skip
    return Profile(
        case=case, under=str(plan), prompts=len(prompts), reference_seconds=seconds,
        telemetry=telemetry, caches=tuple(found), excluded=excluded,
        blind={one.name: _blind(one, seen.work) for one in caches},
    )  # fmt: skip


def _refuse(graph: Graph, plan: Plan) -> None:
    why = graph.why_not(plan)
    if why is not None:
        raise UsageError(f"plan '{plan}' is not legal here", value=str(plan), way_out=why)


def _untouched(worker: Supervisor, prompts: Sequence[Prompt]) -> float:
    """Return the seconds of an untouched call: the faster of two, the first of which warms."""
    samples = [worker.render("baseline", prompts, _DEADLINE, save=False)[0] for _ in range(2)]
    return min(sample.seconds for sample in samples)


def _cache(one: Pass, seen: _Seen, plan: Plan) -> CacheProfile:
    setting, domain = deciding(one, seen.graph.case, seen.telemetry)
    still = inert(one, seen.graph.case, seen.telemetry) is not None
    found = [_point(one, setting, value, seen, plan) for value in _values(domain)]
    points = [point for point in found if point is not None]
    return CacheProfile(
        name=one.name, setting=setting, default=float(getattr(one.settings(), setting)),
        low=None if still else domain.low, high=None if still else domain.high,
        cliff=None if still else _cliff(points), changes=_changes(one, seen.telemetry),
        points=tuple(points),
        learned=_learned(one, seen),
    )  # fmt: skip


def _values(domain: Domain) -> list[float]:
    """Return values from a domain's low end to its high end, evenly on its scale."""
    low, high = domain.low or 0.0, domain.high or 0.0
    parts = [index / (POINTS - 1) for index in range(POINTS)]
    if domain.log:
        found = [low * math.exp(part * math.log(high / low)) for part in parts]
    else:
        found = [low + part * (high - low) for part in parts]
    if domain.step:
        found = [low + round((value - low) / domain.step) * domain.step for value in found]
    return list(dict.fromkeys(round(v) if domain.integer else float(f"{v:.4g}") for v in found))


def _cliff(points: Sequence[Point]) -> float | None:
    """Return the value at which most more is skipped than at the one before it."""
    drops = [(before.simulated.computed - after.simulated.computed, after.value)
             for before, after in pairwise(points)]  # fmt: skip
    drop, value = max(drops, default=(0.0, 0.0), key=lambda pair: pair[0])
    return value if drop > 0 else None


def _changes(one: Pass, telemetry: Telemetry) -> tuple[float, float, float] | None:
    seen = [change for run in telemetry.series(one.name) for series in run.values()
            for change in series.changes()]  # fmt: skip
    if not seen:
        return None
    low, middle, high = (quantile(seen, share) for share in (0.1, 0.5, 0.9))
    return low, middle, high


def _work(stands: Footing | None, plan: Plan) -> Work | None:
    """Return what a call under the plan computes, where it is known."""
    if stands is None:
        return None
    work = stands.work
    for entry in plan.passes:
        work = registry.get(entry.name).effect(work, entry.parsed(), None)
    return work


def _blind(one: Pass, before: Work | None) -> str:
    """Say what the effect of a cache at its defaults is, since no recording tells of it."""
    said = "what it reuses is not simulated"
    if before is None:
        return said
    share = one.effect(before, one.settings(), None).flops / before.flops
    return f"{said}; at its defaults it leaves {share:.1%} of the operations"


def _point(one: Pass, setting: str, value: float, seen: _Seen, plan: Plan) -> Point | None:
    done = simulate(one.name, {setting: value}, seen.telemetry, seen.work)
    if done is None:
        return None
    whole = Plan.of([*plan.passes, *Plan.of({one.name: {setting: value}}).passes])
    foretold = seen.foresight.predict(whole) if seen.foresight else None
    return Point(value=value, simulated=done, seconds=foretold.seconds if foretold else None)


class _Known:
    """Reference calls that have been recorded already."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def render(self) -> None:
        """Have nothing to run again."""

    def telemetry(self) -> Telemetry:
        """Return what was recorded."""
        return self._telemetry


def _learned(one: Pass, seen: _Seen) -> dict[str, Scalar]:
    """Return the numbers of a calibration on the recorded calls, without its lists."""
    if one.calibrate is None:
        return {}
    context = Context(case=seen.graph.case, clock=StepClock())
    artifact = one.calibrate(None, one.settings(), context, _Known(seen.telemetry))
    return {key: value for key, value in artifact.items() if isinstance(value, int | float)}
