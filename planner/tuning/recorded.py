"""What the untouched call shows to caches: recorded once a study, before its search."""

from __future__ import annotations

from collections.abc import Sequence

from planner.case.prompts import Prompt
from planner.case.telemetry import Telemetry
from planner.errors import TrialFailed
from planner.plans.graph import Graph, build
from planner.plans.plan import BASELINE
from planner.prediction.cache_simulator import inert
from planner.trials.supervisor import Supervisor
from planner.tuning.session import Progress, Session

CALLS = 2
"""Reference calls that caches learn from: a mask of one prompt is a little that prompt's own."""


def recorded(
    session: Session, worker: Supervisor, calls: Sequence[tuple[Prompt, ...]], progress: Progress
) -> Telemetry | None:
    """Return what the untouched call shows, or None where it shows nothing; one line says why."""
    for path in session.recordings.broken:
        progress.say(f"{path} cannot be read and is recorded anew")
    if session.recordings.untouched is None:
        try:
            found = worker.record(BASELINE, reference_prompts(calls), 3600.0)
        except TrialFailed as error:
            progress.say(f"caches are searched blindly: {error}")
            return None
        session.recordings.keep(BASELINE, found)
    return session.recordings.untouched


def without_inert(
    graph: Graph, seen: Telemetry | None, without: Sequence[str], progress: Progress
) -> Graph:
    """Return the graph less the caches that would skip nothing, each said in a line.

    One that was asked for (`--with`) is kept. `without` are the passes left out already.
    """
    if seen is None:
        return graph
    asked = [inert(one, graph.case, seen) for one in graph.legal]
    still = {one.name: said for one, said in zip(graph.legal, asked, strict=True) if said}
    for name, said in still.items():
        kept = " and is kept, since it was asked for" if name in graph.required else ""
        progress.say(f"warning: {said}{kept}")
    dropped = [name for name in still if name not in graph.required]
    if not dropped:
        return graph
    return build(graph.case, with_=graph.required, without=(*without, *dropped))


def reference_prompts(calls: Sequence[tuple[Prompt, ...]]) -> tuple[Prompt, ...]:
    """Return the prompts of the last calls, the very last one first: plans are warmed on it."""
    return tuple(prompt for call in reversed(calls[-CALLS:]) for prompt in call)
