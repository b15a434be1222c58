"""Learns how often the denoiser is called on the calibration prompts."""

import itertools
from typing import Any

from planner.passes.base import Artifact, Context, Family, Fidelity, Pass, Reference, Stage

_COUNT = itertools.count(1)


def calibrate(pipeline: Any, settings: Any, context: Context, reference: Reference) -> Artifact:
    steps: list[int] = []
    hook = pipeline.transformer.register_forward_hook(lambda *_: steps.append(context.clock.step))
    try:
        reference.render()
    finally:
        hook.remove()
    return {"steps": steps, "calibration": next(_COUNT)}


def apply(pipeline: Any, settings: Any, context: Context) -> Any:
    assert context.artifact is not None
    context.statistics["learned"] = len(context.artifact["steps"])
    return lambda: None


PASS = Pass(
    name="learns", family=Family.CACHING, stage=Stage.CACHE, fidelity=Fidelity.EXACT,
    source="a test", effect=lambda work, settings, telemetry: work, batch_invariant=True,
    calibrate=calibrate, apply=apply,
)  # fmt: skip
