"""Raises while it is put on, with half of its work done."""

from typing import Any

from planner.passes.base import Context, Family, Fidelity, Pass, Stage


def apply(pipeline: Any, settings: Any, context: Context) -> Any:
    pipeline.transformer.half_done = True
    raise RuntimeError("no such kernel")


PASS = Pass(
    name="explodes", family=Family.CACHING, stage=Stage.CACHE, fidelity=Fidelity.EXACT,
    source="a test", effect=lambda work, settings, telemetry: work, batch_invariant=True,
    apply=apply,
)  # fmt: skip
