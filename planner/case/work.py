"""What a pipeline computes: phases made of operations. Passes transform it."""

from typing import Literal

from pydantic import field_validator

from planner.case.noun import Noun

Kind = Literal["linear", "attention", "convolution", "normalisation", "elementwise", "other"]


class Operation(Noun):
    """One kind of arithmetic in one module: floating-point operations and bytes per call.

    `share` is the part of its phase's calls in which it really runs: below one under a cache.
    `block` tells operations inside the repeated block stack from the rest.
    """

    path: str
    kind: Kind
    flops: float
    bytes: float
    dtype: str
    block: bool = False
    share: float = 1.0
    launches: int = 1


class Phase(Noun):
    """A stretch of a pipeline call that runs `calls` times: encode, denoise, decode.

    A denoise phase belongs to one branch (cond, uncond).
    """

    name: Literal["encode", "denoise", "decode"]
    branch: str | None = None
    calls: float
    operations: tuple[Operation, ...]

    @field_validator("calls")
    @classmethod
    def _not_negative(cls, calls: float) -> float:
        if calls < 0:
            raise ValueError(f"a phase cannot run {calls} times; give zero or more")
        return calls

    @property
    def flops(self) -> float:
        """Return the floating-point operations of all calls of this phase."""
        return self.calls * sum(op.flops * op.share for op in self.operations)


class Work(Noun):
    """Everything one pipeline call computes."""

    phases: tuple[Phase, ...]

    @property
    def flops(self) -> float:
        """Return the floating-point operations of one pipeline call."""
        return sum(phase.flops for phase in self.phases)

    @property
    def forwards(self) -> float:
        """Return how often the denoiser is called in one pipeline call, all branches."""
        return sum(phase.calls for phase in self.phases if phase.name == "denoise")

    @property
    def computed_forwards(self) -> float:
        """Return the denoiser calls whose whole block stack is computed, nothing of it reused."""
        total = 0.0
        for phase in self.phases:
            shares = [op.share for op in phase.operations if op.block]
            if phase.name == "denoise":
                total += phase.calls * (min(shares) if shares else 1.0)
        return total
