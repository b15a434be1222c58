"""How a trial ended: measured, or failed for a named reason."""

from typing import Annotated, Literal

from pydantic import Field

from planner.case.noun import Noun, Scalar


class Measured(Noun):
    """What one plan cost and how far its images are from the reference images.

    `seconds` are steady whole-call times; `ratios` are candidate over the untouched call timed
    next to it; `lpips` one distance a prompt, in prompt order (empty: rejected on latency before
    quality was looked at); `memory_bytes` the peak of the process or device; `statistics` what
    passes observed in the last call (computed steps, quantized layers) as pass name → counters;
    `hit_rates` the share of forwards that each counting pass reused, call by call.
    """

    kind: Literal["measured"] = "measured"
    seconds: tuple[float, ...]
    ratios: tuple[float, ...]
    lpips: tuple[float, ...] = ()
    memory_bytes: int = 0
    first_call_seconds: float = 0.0
    apply_seconds: float = 0.0
    statistics: dict[str, dict[str, Scalar]] = {}
    hit_rates: dict[str, tuple[float, ...]] = {}
    stopped_early: str | None = None


class Failed(Noun):
    """A plan that could not be measured: where it failed, why, and what shows it."""

    kind: Literal["failed"] = "failed"
    stage: str
    reason: str
    evidence: str = ""


Outcome = Annotated[Measured | Failed, Field(discriminator="kind")]
