"""Where an expert would start: a ladder from the mildest stack to the boldest.

Passes that cost nothing come first and stay; then each pass alone, which may be all that a goal
needs and shows the sampler what it is worth; then one rung a family, quantize before cache before
fewer steps, each rung on top of the one below; then bolder settings, alone and at the top. Of
several passes that do the same thing one stands for all: the others are the sampler's. Six such
seeds were worth at least forty trials of a sampler without them (a shoot-out over six landscapes).
No pass is known by name: the rungs are families, the settings the passes' own `seeds`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from planner.case.case import Case
from planner.case.goal import LOSSLESS_LPIPS, Goal
from planner.passes.base import Family, Fidelity, Pass
from planner.plans.graph import Graph
from planner.plans.plan import Plan

MOST = 24
"""The most seeds that are returned: more would leave a short search nothing to learn with."""

LADDER = (
    Family.QUANTIZATION,
    Family.ATTENTION,
    Family.CACHING,
    Family.DISTILLATION,
    Family.SAMPLING,
)
"""The rungs in the order in which an expert climbs them; each keeps the ones below."""

SLOW_TO_PUT_ON = (Family.COMPILATION,)
"""Families that are tried alone: every stack with them would pay for the compiler again."""

Stack = dict[str, Mapping[str, Any]]


def seeds(graph: Graph, case: Case, goal: Goal) -> tuple[Plan, ...]:
    """Return at most `MOST` legal plans in ladder order, none twice, the baseline not among them.

    A goal close to lossless leaves divergent passes to the sampler; memory passes stand on the
    ladder only where memory is limited.
    """
    del case  # the graph's own; the parameter is the seam for seeds that look at the workload
    base = _base(graph)
    rungs = [_members(graph, goal, family) for family in _families(goal)]
    slow = [_members(graph, goal, family) for family in SLOW_TO_PUT_ON]
    boldest = max((len(one.seeds) for rung in rungs for one in rung), default=1)
    leading = [_leaders(graph, rung) for rung in rungs]
    stacks = [
        *_alone(graph, base, [*leading, *slow], range(1)),
        *_climb(graph, base, leading),
        *_alone(graph, base, leading, range(1, boldest)),
        *(top for level in range(1, boldest) for top in _top(graph, base, leading, level)),
    ]
    found = dict.fromkeys(Plan.of(stack) for stack in stacks)
    return tuple(plan for plan in found if plan.passes)[:MOST]


def _families(goal: Goal) -> tuple[Family, ...]:
    return LADDER if goal.vram_bytes is None else (Family.MEMORY, *LADDER)


def _members(graph: Graph, goal: Goal, family: Family) -> list[Pass]:
    """Return the passes of a rung that are not free, in plan order."""
    strict = goal.max_lpips is not None and goal.max_lpips <= LOSSLESS_LPIPS
    found = [one for one in graph.legal if one.family is family and not _is_free(one)]
    return [one for one in found if not (strict and one.fidelity is Fidelity.DIVERGENT)]


def _is_free(one: Pass) -> bool:
    """Tell whether a pass changes no image and takes no time to put on."""
    costs = (Family.COMPILATION, Family.MEMORY)
    return one.fidelity is Fidelity.EXACT and one.family not in costs


def _base(graph: Graph) -> Stack:
    """Return what stands in every seed: required passes, then free ones that fit beside them."""
    base: Stack = {one.name: one.seeds[0] for one in graph.legal if one.name in graph.required}
    for one in graph.legal:
        grown = base | {one.name: one.seeds[0]}
        if _is_free(one) and _is_legal(graph, grown):
            base = grown
    return base


def _climb(graph: Graph, base: Stack, rungs: list[list[Pass]]) -> Iterator[Stack]:
    """Yield every stack of the ladder, rung by rung; several leaders of a rung branch it."""
    stacks = [base]
    yield base
    for rung in rungs:
        grown = [new for stack in stacks for new in _grow(graph, stack, rung, 0)]
        yield from grown
        stacks = grown or stacks


def _leaders(graph: Graph, rung: list[Pass]) -> list[Pass]:
    """Return a rung without the passes that another one stands for, since no plan takes both.

    What is fitted to the model stands for what is not, then what draws an image whatever its
    neighbours, then what need not call the denoiser, then what has fewer settings to search.
    """

    def rank(one: Pass) -> tuple[bool, bool, bool, int, str]:
        fitted = one.calibrate is not None
        return (not fitted, not one.batch_invariant, one.around is None,
                len(one.settings.model_fields), one.name)  # fmt: skip

    apart = {frozenset((clash.a, clash.b)) for clash in graph.clashes
             if clash.always and clash.verdict == "breaks"}  # fmt: skip
    return [one for one in rung
            if not any(rank(other) < rank(one) and frozenset((other.name, one.name)) in apart
                       for other in rung)]  # fmt: skip


def _top(graph: Graph, base: Stack, rungs: list[list[Pass]], level: int) -> list[Stack]:
    """Return the top of the ladder with bolder settings: on every rung all that fits."""
    stacks = [base]
    for rung in rungs:
        grown = [_grow(graph, stack, rung, level) for stack in stacks]
        most = max((len(new) for stack in grown for new in stack), default=0)
        stacks = [new for stack in grown for new in stack if len(new) == most] or stacks
    return stacks


def _grow(graph: Graph, stack: Stack, rung: list[Pass], level: int) -> list[Stack]:
    """Return the stack with each pass of a rung, and with all of them where that is legal."""
    ones = [stack | {one.name: _seed(one, level)} for one in rung]
    every = stack | {one.name: _seed(one, level) for one in rung}
    wanted = [*ones, every] if len(rung) > 1 else ones
    return [new for new in wanted if _is_legal(graph, new)]


def _alone(
    graph: Graph, base: Stack, rungs: list[list[Pass]], levels: Iterable[int]
) -> Iterator[Stack]:
    """Yield each single pass at each of its seeds, beside what of the base it can stand with."""
    for level in levels:
        for one in (one for rung in rungs for one in rung if one.name not in base):
            stack = {name: base[name] for name in graph.required} | {one.name: _seed(one, level)}
            for name, settings in base.items():
                if _is_legal(graph, grown := stack | {name: settings}):
                    stack = grown
            if _is_legal(graph, stack):
                yield stack


def _seed(one: Pass, level: int) -> Mapping[str, Any]:
    return one.seeds[min(level, len(one.seeds) - 1)]


def _is_legal(graph: Graph, stack: Stack) -> bool:
    return graph.why_not(Plan.of(stack)) is None
