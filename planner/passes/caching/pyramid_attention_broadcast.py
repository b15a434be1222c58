"""Compute attention every few steps, and give its last output again in between.

What it does: in a stretch of the schedule every attention module runs once in so many steps, by
its kind (self or joint, cross, temporal), and otherwise answers with its last output of the same
branch. All else of the block is computed, so that gates and feed-forward follow every step.
When it helps: long sequences, where attention is most of the time; cross attention, which changes
least, can be left out the longest. Nothing is calibrated or compared: latency is known before.
What it costs: the outputs of all attention modules in memory, for every branch.
When not: 8 steps or fewer; few tokens, where attention is a small part; Flux.2's single blocks,
whose attention module holds the feed-forward too, so that nothing but gates follows the steps.
Not beside a cache of whole steps: at a step whose stack is skipped no attention runs, so that
outputs would be older than the ranges say, and the residual that is kept would hold reused
attention. Compiled blocks stay whole, with one graph more for each combination that is left out.
Source: PAB (Zhao et al. 2024, arXiv 2408.12588). Planner's own implementation: diffusers' counts a
module's calls, so that under guidance in a second forward one branch gets the other's outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.case.work import Work
from planner.case.workload import Workload
from planner.hooks.attention import (
    KINDS,
    SPATIAL,
    Reuse,
    attention_needs,
    in_window,
    reuse_attention,
    reusing_attention,
)
from planner.hooks.reuse import reused_none
from planner.passes.base import (
    Context,
    Domain,
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


class PyramidAttentionBroadcastSettings(Settings):
    """Every how many steps attention of a kind runs (1: at all of them), and where so."""

    spatial: int = knob(
        2, "every how many steps self and joint attention run", low=1, high=6, step=1, least=1,
        most=1000,
    )  # fmt: skip
    cross: int = knob(
        6, "every how many steps cross attention runs", low=1, high=10, step=1, least=1, most=1000
    )
    temporal: int = knob(
        4, "every how many steps temporal attention runs", low=1, high=8, step=1, least=1, most=1000
    )
    start: float = knob(
        0.2, "share of the steps before any is left out", low=0.0, high=0.5, step=0.05,
        least=0.0, most=1.0,
    )  # fmt: skip
    stop: float = knob(
        0.9, "share of the steps from which on all run again", low=0.6, high=1.0, step=0.05,
        least=0.0, most=1.0,
    )  # fmt: skip


def runs(settings: PyramidAttentionBroadcastSettings, kind: str, step: int, total: int) -> bool:
    """Tell whether attention of a kind runs: outside the stretch, at its start, every so often."""
    if not in_window(settings.start, settings.stop, step, total):
        return True
    first = next(one for one in range(step + 1)
                 if in_window(settings.start, settings.stop, one, total))  # fmt: skip
    every: int = getattr(settings, kind)
    return (step - first) % every == 0


def _reuse(settings: PyramidAttentionBroadcastSettings) -> Reuse:
    def _runs(kind: str, step: int, total: int) -> bool:
        return runs(settings, kind, step, total)

    def last(outputs: Sequence[Any], at: float) -> Any:
        return outputs[-1]

    return Reuse(_runs, 1, last)


def apply(
    pipeline: Any, settings: PyramidAttentionBroadcastSettings, context: Context
) -> Undo:
    """Put the ranges on the attention of every denoiser."""
    return reuse_attention(pipeline, _reuse(settings), context.clock, context.statistics,
                           "planner_pyramid_attention_broadcast")  # fmt: skip


def effect(
    work: Work, settings: PyramidAttentionBroadcastSettings, telemetry: Telemetry | None
) -> Work:
    """Lower the share of attention modules to that of their steps; hold their outputs."""
    return reusing_attention(work, _reuse(settings).runs)


def narrow(case: Case, telemetry: Telemetry | None) -> dict[str, Domain]:
    """Leave the range of a kind that these blocks do not have where it is."""
    defaults = PyramidAttentionBroadcastSettings()
    missing = (kind for kind in KINDS if kind not in case.model.traits.attention)
    return {kind: Domain(choices=(getattr(defaults, kind),)) for kind in missing}


def unfit(case: Case, settings: PyramidAttentionBroadcastSettings) -> str | None:
    """Answer a sentence where every kind of attention that is there runs at all steps."""
    there = case.model.traits.attention
    if not there or any(getattr(settings, kind) > 1 for kind in there):
        return None
    said = ", ".join(f"{kind} 1" for kind in there)
    return f"pyramid_attention_broadcast leaves nothing out at {said}; set a range above 1"


def observe(
    settings: PyramidAttentionBroadcastSettings, statistics: Statistics, workload: Workload
) -> str | None:
    """Answer a sentence if no attention was reused."""
    return reused_none("pyramid_attention_broadcast", settings.spatial, statistics, SPATIAL)


_SOURCE = "Zhao et al. 2024, arXiv 2408.12588"

PASS = Pass(
    name="pyramid_attention_broadcast",
    family=Family.CACHING,
    stage=Stage.CACHE,
    fidelity=Fidelity.APPROXIMATE,
    source=_SOURCE,
    settings=PyramidAttentionBroadcastSettings,
    owns=("denoiser.attention_reuse",),
    needs=tuple(Need(*pair) for pair in attention_needs("pyramid_attention_broadcast")),
    effect=effect,
    apply=apply,
    observe=observe,
    narrow=narrow,
    unfit=unfit,
    # The paper's ranges, named after spatial, temporal and cross: 2-4-6, and a bolder one.
    seeds=({"spatial": 2, "temporal": 4, "cross": 6}, {"spatial": 3, "temporal": 5, "cross": 7}),
    batch_invariant=True,
)
