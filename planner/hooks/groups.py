"""A block stack as a few groups of neighbouring blocks, each of which may be reused by itself.

Blocks near the input change sooner than those at the end, and a list of single-stream blocks
otherwise than one of double-stream blocks; groups may therefore be computed at different steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from planner.case.work import Phase, Work
from planner.hooks.blocks import Segment, segments
from planner.hooks.reuse import Place, block_lists, place_of, with_residuals

GROUPS = 4
"""Groups of a stack, about: none lies across two lists, and none is without a block."""


def groups(denoiser: Any) -> tuple[Segment, ...]:
    """Return the groups in calling order. Raises `UsageError` as `segments` does."""
    parts = segments(denoiser)
    return tuple(Segment(parts[index].name, parts[index].blocks[start:stop])
                 for index, start, stop in _bounds([len(part.blocks) for part in parts]))


def _bounds(sizes: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return each group's list, first block and end, for lists of so many blocks."""
    found = []
    for index, size in enumerate(sizes):
        count = min(size, max(1, round(GROUPS * size / sum(sizes))))
        edges = [round(part * size / count) for part in range(count + 1)]
        found += [(index, start, stop) for start, stop in pairwise(edges)]
    return found


def skipping_groups_of(
    work: Work, shares_of: Callable[[Phase], Sequence[float]], copies: int
) -> Work:
    """Return the work whose groups of blocks run at a share each of a denoise phase's calls.

    One share is that of all groups; a phase without any runs as before. `copies` of what each
    group adds are held.
    """
    phases = [phase for phase in work.phases if phase.name == "denoise"]
    made = max((len(_groups(phase)) for phase in phases), default=1)

    def skipped(phase: Phase) -> Phase:
        shares = shares_of(phase) if phase.name == "denoise" else ()
        return _at(phase, shares) if shares else phase

    return with_residuals(work.mapped(skipped), 0, copies * made)


def _at(phase: Phase, shares: Sequence[float]) -> Phase:
    parts = _groups(phase)
    each = shares if len(shares) == len(parts) else [fmean(shares)] * len(parts)
    of = {block: share for part, share in zip(parts, each, strict=True) for block in part}
    return phase.mapped(lambda op: op.model_copy(
        update={"share": op.share * of[place_of(op)]}) if op.block else op)  # fmt: skip


def _groups(phase: Phase) -> list[tuple[Place, ...]]:
    """Return the blocks of every group of a denoise phase."""
    lists = block_lists(phase)
    return [lists[index][start:stop]
            for index, start, stop in _bounds([len(blocks) for blocks in lists])]
