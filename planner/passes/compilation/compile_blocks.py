"""Compile the denoiser's repeated blocks.

What it does: compiles each block class once with torch.compile and lets every block of that class
use it, underneath all hooks: caches stay ordinary Python around compiled blocks, with no graph
break, and the compiled code is the same whichever passes are on.
When it helps: a GPU (1.2 to 1.4 times), precision passes there; on a CPU little (1.05 to 1.15).
What it costs: seconds to minutes in the first call; it pays off after many images.
When not: few images a start, a CPU without C++ compiler. Sizes that change from call to call are
compiled anew each, unless `dynamic` asks for one slower graph that takes all but the first.
Source: PyTorch, regional compilation recipe; diffusers' compile_repeated_blocks.

The images are the same up to rounding: fused kernels add up in another order. The compile time is
a cost of its own, measured apart from the steady state: the effect leaves it out.
"""

from __future__ import annotations

import inspect
import os
import shutil
from functools import partial
from typing import Any, Literal

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.case.work import Operation, Work
from planner.hooks.beneath import beneath_hooks
from planner.hooks.blocks import denoisers_of, segments
from planner.passes.base import (
    Context,
    Family,
    Fidelity,
    Need,
    Pass,
    Settings,
    Stage,
    Undo,
    knob,
)

MOST_GRAPHS = 64
"""How many variants of one block class are compiled, at most, in one process."""


class CompileBlocksSettings(Settings):
    """How hard to try, and for which sizes.

    The modes with graphs of torch's own are left out: a block's outputs would be written over by
    the next block of its class. `cuda_graphs` records the whole forward instead.
    """

    mode: Literal["default", "max-autotune-no-cudagraphs"] = knob(
        "default", "torch.compile's mode",
        choices=("default", "max-autotune-no-cudagraphs"),
    )  # fmt: skip
    dynamic: bool = knob(False, "whether one graph serves every size after the first")


def apply(pipeline: Any, settings: CompileBlocksSettings, context: Context) -> Undo:
    """Give every block its class's compiled forward; compiled code stays in the memo."""
    stacks = [part for model in denoisers_of(pipeline).values() for part in segments(model)]
    blocks = [block for part in stacks for block in part.blocks]
    undo = [
        beneath_hooks(block, partial(_compiled(type(block), settings, context.memo), block))
        for block in blocks
    ]
    context.statistics.update(blocks=len(blocks), classes=len({type(b) for b in blocks}))

    def take_off() -> None:
        while undo:
            undo.pop()()

    return take_off


def _compiled(kind: Any, settings: CompileBlocksSettings, memo: dict[str, Any]) -> Any:
    import torch

    key = f"{kind.__module__}.{kind.__qualname__}:{settings.mode}:{settings.dynamic}"
    if key not in memo:
        # Every choice of quantized layers is another graph; past the limit torch falls back to
        # eager without an error. Older versions of torch know the limit as a global only.
        limit: Any = {}
        if "recompile_limit" in inspect.signature(torch.compile).parameters:
            limit = {"recompile_limit": MOST_GRAPHS}
        # None: static at first, and dynamic in what is seen to change. True would be dynamic in
        # everything, and guard on sizes that are equal by chance.
        dynamic = None if settings.dynamic else False
        memo[key] = torch.compile(kind.forward, mode=settings.mode, dynamic=dynamic, **limit)
    return memo[key]


def effect(work: Work, settings: CompileBlocksSettings, telemetry: Telemetry | None) -> Work:
    """Fuse each block's normalisations and element-wise work: one launch, one pass over memory."""

    def fused(op: Operation) -> Operation:
        if not op.block or op.kind not in ("normalisation", "elementwise"):
            return op
        return op.model_copy(update={"bytes": op.bytes / max(1, op.launches), "launches": 1})

    return work.mapped(lambda phase: phase.mapped(fused) if phase.name == "denoise" else phase)


def _known_blocks(case: Case) -> str | None:
    if case.model.traits.blocks:
        return None
    return f"compile_blocks needs a known block list; {case.model.traits.denoiser_class} has none"


def _compiler(case: Case) -> str | None:
    if case.device.kind != "cpu":
        return None
    wanted = os.environ.get("CXX", "g++")
    if shutil.which(wanted):
        return None
    return f"compile_blocks needs a C++ compiler on a CPU; {wanted!r} is not on the path"


_SOURCE = "PyTorch recipe: reducing compile time with regional compilation"

PASS = Pass(
    name="compile_blocks",
    family=Family.COMPILATION,
    stage=Stage.COMPILE,
    fidelity=Fidelity.EXACT,
    source=_SOURCE,
    settings=CompileBlocksSettings,
    owns=("denoiser.block_code",),
    needs=(
        Need(_known_blocks, _SOURCE),
        Need(_compiler, "torch._inductor.cpp_builder"),
    ),
    effect=effect,
    apply=apply,
    seeds=({"mode": "default"},),
    batch_invariant=True,
)
