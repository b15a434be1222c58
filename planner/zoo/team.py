"""Trainers side by side: each takes its share of a step, and all take the mean of the gradients.

Single-threaded processes do more together than one process with as many threads, because the
operations of so small a model are too short to share among threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, multiprocessing
from torch.multiprocessing.spawn import spawn

_WAIT = 600.0
"""Seconds after which a partner that does not come counts as dead."""


class Team:
    """A member's view of the team: its rank, the shared gradients, and the leader's clock."""

    def __init__(self, size: int = 1, gradients: int = 0) -> None:
        """Make room for the gradients of `size` members, `gradients` numbers each."""
        self.rank, self.size = 0, size
        self._rows = _shared(size, gradients)
        self._clock = _shared(1, dtype=torch.float64)
        self._barrier = multiprocessing.get_context("spawn").Barrier(size)

    def average(self, gradients: Iterable[Tensor], seconds: float) -> float:
        """Replace gradients by their mean over the team; return the leader's `seconds`.

        All members add in the same order and follow one clock, so their weights stay bit-equal.
        Raises threading.BrokenBarrierError where a partner has died.
        """
        if self.size == 1:
            return seconds
        mine = list(gradients)
        sizes = [gradient.numel() for gradient in mine]
        row = torch.split(self._rows[self.rank], sizes)
        torch._foreach_copy_(list(row), [g.flatten() for g in mine])
        if self.rank == 0:
            self._clock.fill_(seconds)
        self._barrier.wait(_WAIT)
        mean = torch.split(self._rows.mean(0), sizes)
        torch._foreach_copy_(mine, [m.view_as(g) for m, g in zip(mean, mine, strict=True)])
        agreed = float(self._clock.item())
        self._barrier.wait(_WAIT)  # nobody writes the next gradients before all have read these
        return agreed


def _shared(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return zeros that child processes see and change."""
    zeros: Any = torch.zeros(*size, dtype=dtype)
    return cast(Tensor, zeros.share_memory_())


def _member(rank: int, team: Team, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    team.rank = rank
    work(team, *args)


def together(team: Team, work: Callable[..., None], *args: Any) -> None:
    """Run `work(team, *args)` in one single-threaded process a member; raise what one raised."""
    cast(Any, spawn)(_member, (team, work, args), nprocs=team.size)
