"""The frame of every cache that skips the whole block stack: decide, count, keep, forecast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from planner.case.noun import Scalar
from planner.hooks.blocks import Stack, Streams, denoiser_of
from planner.hooks.branches import PerBranch, Tally
from planner.hooks.clock import StepClock
from planner.hooks.forecast import History


class Choice(Protocol):
    """Says whether a forward of a branch may skip the stack; asked once a forward."""

    def skips(self, branch: str, head: Any, args: Any, kwargs: Any) -> bool:
        """Tell whether the stack is skipped; `head` is the first block, with its arguments."""

    def restart(self) -> None:
        """Forget the last call."""


class _Skipping:
    """The rule on a block stack: what is skipped is forecast from what was computed before."""

    def __init__(
        self, choice: Choice, clock: StepClock, statistics: dict[str, Scalar], order: int
    ) -> None:
        self._choice, self._clock = choice, clock
        self._branches = PerBranch(lambda: History(order), clock)
        self._tally = Tally(statistics, clock)

    def restart(self) -> None:
        """Forget the last call."""
        self._choice.restart()
        self._branches.clear()
        self._tally.restart()

    def reuse(self, branch: str, head: Any, args: Any, kwargs: Any) -> list[Streams] | None:
        """Return what the stack is expected to add, or None where it must run."""
        if not self._clock.running:  # nobody says where a call begins: nothing is safe to reuse
            return None
        history = self._branches[branch]
        skipped = self._choice.skips(branch, head, args, kwargs) and bool(history)
        self._tally.add(branch, computed=not skipped)
        return history.at(self._clock.place) if skipped else None

    def computed(self, branch: str, added: list[Streams]) -> None:
        """Keep what the stack added."""
        if self._clock.running:
            self._branches[branch].keep(self._clock.place, added)


def skipping(
    pipeline: Any, choice: Choice, clock: StepClock, statistics: dict[str, Scalar], name: str,
    order: int = 0,
) -> Callable[[], None]:  # fmt: skip
    """Put a choice on a pipeline's block stack; returns the undo.

    `statistics` receive what `Tally` counts; `order` is that of the forecast. A branch that
    resumes after steps in which it was not called starts from nothing.
    """
    rule = _Skipping(choice, clock, statistics, order)
    stop = clock.on_reset(rule.restart)
    try:
        stack = Stack(denoiser_of(pipeline), rule, clock, name)
    except BaseException:
        stop()
        raise

    def undo() -> None:
        stack.detach()
        stop()

    return undo
