"""Names what went wrong in a worker: the stage of a plan that failed, or a lack of memory."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from planner.errors import TrialFailed
from planner.plans.plan import Plan

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@contextmanager
def failing_at(stage: str, plan: Plan) -> Iterator[None]:
    """Turn whatever goes wrong inside into a `TrialFailed` of this stage, or of stage memory.

    Its value is the traceback; a `TrialFailed` from inside keeps its own stage and words.
    """
    try:
        yield
    except Exception as error:
        trace = "".join(traceback.format_exception(error))[-3000:]
        if _out_of_memory(error):
            raise TrialFailed(
                f"plan '{plan}' ran out of memory (at {stage})", stage="memory",
                value=trace, way_out="use a smaller size or batch",
            ) from error  # fmt: skip
        if isinstance(error, TrialFailed):
            if error.__cause__ is None:
                raise
            raise TrialFailed(error.what, stage=error.stage, value=trace,
                              way_out=error.way_out) from error  # fmt: skip
        raise TrialFailed(
            f"plan '{plan}' failed at {stage} ({type(error).__name__}: {error})", stage=stage,
            value=trace, way_out="leave the pass out that stands last in the trace",
        ) from error  # fmt: skip


def _out_of_memory(error: BaseException | None) -> bool:
    """Tell whether an error, or what caused it, is a lack of memory."""
    import torch

    while error is not None:
        lacks = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if lacks or any(phrase in str(error).lower() for phrase in _NO_MEMORY):
            return True
        error = error.__cause__
    return False
