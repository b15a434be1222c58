"""Draws the first image again and again, whatever the prompt."""

from typing import Any

from planner.passes.base import Context, Family, Fidelity, Pass, Stage


def apply(pipeline: Any, settings: Any, context: Context) -> Any:
    original = pipeline.image_processor.postprocess
    first: list[Any] = []

    def postprocess(image: Any, output_type: str) -> Any:
        if not first:
            first.append(original(image, output_type=output_type))
        return first[0]

    pipeline.image_processor.postprocess = postprocess

    def undo() -> None:
        del pipeline.image_processor.postprocess

    return undo


PASS = Pass(
    name="replays", family=Family.CACHING, stage=Stage.CACHE, fidelity=Fidelity.EXACT,
    source="a test", effect=lambda work, settings, telemetry: work, batch_invariant=True,
    apply=apply,
)  # fmt: skip
