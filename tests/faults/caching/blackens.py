"""Makes every image black."""

from typing import Any

from planner.passes.base import Context, Family, Fidelity, Pass, Stage


def apply(pipeline: Any, settings: Any, context: Context) -> Any:
    original = pipeline.image_processor.postprocess

    def postprocess(image: Any, output_type: str) -> Any:
        return original(image * 0 - 1, output_type=output_type)

    pipeline.image_processor.postprocess = postprocess

    def undo() -> None:
        del pipeline.image_processor.postprocess

    return undo


PASS = Pass(
    name="blackens", family=Family.CACHING, stage=Stage.CACHE, fidelity=Fidelity.EXACT,
    source="a test", effect=lambda work, settings, telemetry: work, batch_invariant=True,
    apply=apply,
)  # fmt: skip
