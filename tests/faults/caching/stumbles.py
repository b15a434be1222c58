"""Raises when it is asked what it observed."""

from typing import Any

from planner.passes.base import Family, Fidelity, Pass, Stage


def observe(settings: Any, statistics: Any, workload: Any) -> str | None:
    raise KeyError("computed")


PASS = Pass(
    name="stumbles", family=Family.CACHING, stage=Stage.CACHE, fidelity=Fidelity.EXACT,
    source="a test", effect=lambda work, settings, telemetry: work, batch_invariant=True,
    observe=observe,
)  # fmt: skip
