"""Promises an undo that raises."""

from typing import Any

from planner.passes.base import Context, Family, Fidelity, Pass, Stage


def apply(pipeline: Any, settings: Any, context: Context) -> Any:
    def undo() -> None:
        raise RuntimeError("it does not come off")

    return undo


PASS = Pass(
    name="sticks", family=Family.CACHING, stage=Stage.CACHE, fidelity=Fidelity.EXACT,
    source="a test", effect=lambda work, settings, telemetry: work, batch_invariant=True,
    apply=apply,
)  # fmt: skip
