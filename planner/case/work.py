"""What a pipeline computes: phases made of operations. Passes transform it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import field_validator

from planner.case.noun import Noun

Kind = Literal["linear", "attention", "convolution", "normalisation", "elementwise", "other"]


class Operation(Noun):
    """One kind of arithmetic in one module: floating-point operations and bytes per call.

    `weights` is the part of `bytes` that is parameters. `share` is the part of its phase's calls
    in which it really runs: below one under a cache. `block` tells operations inside the repeated
    block stack from the rest. `kernel` names the attention backend where a plan chose one.
    """

    path: str
    kind: Kind
    flops: float
    bytes: float
    dtype: str
    block: bool = False
    share: float = 1.0
    launches: int = 1
    weights: float = 0.0
    kernel: str = ""


class Phase(Noun):
    """A stretch of a pipeline call that runs `calls` times: encode, denoise, decode.

    A denoise phase belongs to one branch (cond, uncond). `peak` is the most bytes of activations
    alive at once in one of its calls, parameters not counted. `transfers` is the bytes of weights
    that cross the link from the host, in all its calls together; `overlapped` says that they do so
    while the device computes. `captured` says that its launches are replayed as one graph.
    `copies` is how many times its peak a call takes on a GPU, whose convolutions hold copies of
    what they read and write with the channels last.
    """

    name: Literal["encode", "denoise", "decode"]
    branch: str | None = None
    calls: float
    operations: tuple[Operation, ...]
    peak: float = 0.0
    transfers: float = 0.0
    overlapped: bool = False
    captured: bool = False
    copies: float = 1.0

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

    def mapped(self, change: Callable[[Operation], Operation]) -> Phase:
        """Return this phase with every operation changed; what else it holds stays."""
        return self.model_copy(update={"operations": tuple(map(change, self.operations))})


class Part(Noun):
    """One component's weights: how many, in how many bytes, and where they lie while it rests.

    device: always on the device; host: moved in as a whole for its phase; streamed: moved in group
    by group, at most `window` bytes at once. `phase` is the phase that needs them.
    """

    name: str
    phase: Literal["encode", "denoise", "decode"]
    parameters: float
    bytes: float
    place: Literal["device", "host", "streamed"] = "device"
    window: float = 0.0


class Work(Noun):
    """Everything one pipeline call computes, and what it keeps in memory for that.

    `kept` is the bytes that passes hold from one step to the next, such as cached residuals.
    `batch` images of `height` × `width` pixels are drawn; 0 where the call does not say.
    """

    phases: tuple[Phase, ...]
    parts: tuple[Part, ...] = ()
    kept: float = 0.0
    height: int = 0
    width: int = 0
    batch: int = 1

    def mapped(self, change: Callable[[Phase], Phase]) -> Work:
        """Return this work with every phase changed; what else it holds stays."""
        return self.model_copy(update={"phases": tuple(map(change, self.phases))})

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
