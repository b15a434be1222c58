"""Compute attention every other step, and draw its last two outputs out in between.

What it does: from a place in the schedule on every attention module runs at every second step;
in between it answers o2 + w (o2 - o1) from the last two outputs of the same branch that were
computed, o2 the newer, with a weight w that grows from 0 at the first step to 1 at the last.
When it helps: long sequences, where attention is most of the time. A line follows what plain reuse
would leave behind, so that details late in the schedule keep up. Nothing is calibrated.
What it costs: two outputs of every attention module in memory for every branch: tens of gigabytes
on video models; and in between one pass over both instead of the module.
When not: 8 steps or fewer; few tokens, where attention is a small part; quantized attention, whose
noise a line draws out. Not beside a cache of whole steps, which runs no attention at the steps
that it skips, so that a line would go through outputs of other steps than it takes them for.
Source: FasterCache (Lv et al. 2024, arXiv 2410.19355), its dynamic reuse of attention, from the
formulas. The other half of the paper, which spares the unconditional forward (CFG cache), is
another pass, uncond_cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planner.case.telemetry import Telemetry
from planner.case.work import Work
from planner.case.workload import Workload
from planner.hooks.attention import (
    Reuse,
    attention_needs,
    in_window,
    reuse_attention,
    reusing_attention,
)
from planner.hooks.reuse import reused_none
from planner.passes.base import (
    Context,
    Family,
    Fidelity,
    Need,
    Pass,
    Settings,
    Stage,
    Statistics,
    Undo,
    knob,
)

_KNOWN = 2
"""Outputs that a line needs."""


class FasterCacheSettings(Settings):
    """Where every second step is left out."""

    start: float = knob(
        0.3, "share of the steps before any is left out", low=0.0, high=0.6, step=0.05,
        least=0.0, most=1.0,
    )  # fmt: skip
    stop: float = knob(
        1.0, "share of the steps from which on all run again", low=0.7, high=1.0, step=0.05,
        least=0.0, most=1.0,
    )  # fmt: skip


def runs(settings: FasterCacheSettings, step: int, total: int) -> bool:
    """Tell whether attention runs: outside the stretch, at its start, and at every second step.

    It runs besides where two outputs are not known yet.
    """
    if not in_window(settings.start, settings.stop, step, total):
        return True
    first = next(one for one in range(step + 1)
                 if in_window(settings.start, settings.stop, one, total))  # fmt: skip
    return (step - first) % 2 == 0


def drawn_out(outputs: Sequence[Any], weight: float) -> Any:
    """Return the newer of two outputs plus so much of what it differs by from the older.

    Outputs are tensors or tuples of them, such as image and text.
    """
    import torch

    older, newer = outputs
    if isinstance(newer, torch.Tensor):
        return torch.lerp(older, newer, 1.0 + weight)
    if not isinstance(newer, tuple | list):
        return newer
    return tuple(drawn_out(pair, weight) for pair in zip(older, newer, strict=True))


def _reuse(settings: FasterCacheSettings) -> Reuse:
    def _runs(kind: str, step: int, total: int) -> bool:
        return runs(settings, step, total)

    return Reuse(_runs, _KNOWN, drawn_out)


def apply(pipeline: Any, settings: FasterCacheSettings, context: Context) -> Undo:
    """Put the line on the attention of every denoiser."""
    return reuse_attention(pipeline, _reuse(settings), context.clock, context.statistics,
                           "planner_faster_cache")  # fmt: skip


def effect(work: Work, settings: FasterCacheSettings, telemetry: Telemetry | None) -> Work:
    """Lower the share of attention modules to that of their steps; hold two outputs of each."""
    return reusing_attention(work, _reuse(settings).runs, _KNOWN)


def observe(
    settings: FasterCacheSettings, statistics: Statistics, workload: Workload
) -> str | None:
    """Answer a sentence if no attention was reused."""
    return reused_none("faster_cache", settings.start, statistics, "start")


_SOURCE = "Lv et al. 2024, arXiv 2410.19355"

PASS = Pass(
    name="faster_cache",
    family=Family.CACHING,
    stage=Stage.CACHE,
    fidelity=Fidelity.APPROXIMATE,
    source=_SOURCE,
    settings=FasterCacheSettings,
    owns=("denoiser.attention_reuse",),
    needs=tuple(Need(*pair) for pair in attention_needs("faster_cache")),
    effect=effect,
    apply=apply,
    observe=observe,
    seeds=({"start": 0.3}, {"start": 0.15}),
    batch_invariant=True,
)
