"""The work of a cache that runs the ends of every block list and reuses the middle."""

from __future__ import annotations

from planner.case.work import Operation, Phase, Work
from planner.hooks.reuse import Place, block_lists, place_of, with_residuals


def ends(first: int, last: int, blocks: int) -> tuple[int, int]:
    """Return how many blocks run at both ends of a list, which may have fewer than are asked."""
    first = min(first, blocks)
    return first, min(last, blocks - first)


def skipping_between(phase: Phase, first: int, last: int, share: float) -> Phase:
    """Return the phase whose blocks run at a share of the calls, save those at its lists' ends."""
    always: set[Place] = set()
    for blocks in _lists(phase):
        start, end = ends(first, last, len(blocks))
        always |= {*blocks[:start], *blocks[len(blocks) - end :]}

    def reused(op: Operation) -> Operation:
        if not op.block or place_of(op) in always:
            return op
        return op.model_copy(update={"share": op.share * share})

    return phase.mapped(reused)


def holding(work: Work, copies: float) -> Work:
    """Return the work holding so many residuals of every list that cache-dit makes."""
    phases = [phase for phase in work.phases if phase.name == "denoise"]
    return with_residuals(work, 0, copies * max((len(_lists(one)) for one in phases), default=1))


def _lists(phase: Phase) -> list[tuple[Place, ...]]:
    """Return the blocks of every list that cache-dit makes: it joins the two of FLUX.1."""
    found = block_lists(phase)
    paths = [op.path for op in phase.operations]
    # HunyuanVideo's lists have the same names and layers, but its text goes through a refiner.
    if any(p.endswith(".proj_mlp") for p in paths) and not any("refiner" in p for p in paths):
        return [tuple(block for blocks in found for block in blocks)]
    return found
