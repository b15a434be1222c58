"""Changes the pipeline for good: there is no undo."""

from typing import Any

from planner.passes.base import Context, Family, Fidelity, Pass, Stage


def apply(pipeline: Any, settings: Any, context: Context) -> Any:
    pipeline.transformer.proj_out.weight.mul_(0.5)

    def undo() -> None:
        raise AssertionError("must not be asked for")

    return undo


PASS = Pass(
    name="keeps", family=Family.CACHING, stage=Stage.QUANTIZE, fidelity=Fidelity.EXACT,
    source="a test", effect=lambda work, settings, telemetry: work, batch_invariant=True,
    apply=apply, reversible=False,
)  # fmt: skip
