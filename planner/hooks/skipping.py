"""The frame of every cache that skips whole steps: decide, count, keep, forecast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Protocol

from planner.case.noun import Scalar
from planner.hooks.blocks import Stack, denoiser_of
from planner.hooks.branches import PerBranch, Tally
from planner.hooks.clock import StepClock
from planner.hooks.forecast import History
from planner.hooks.whole import Run, Whole, form_of


class Choice(Protocol):
    """Says whether a forward of a branch may be skipped; asked once a forward."""

    def skips(self, branch: str, block: Any, args: Any, kwargs: Any) -> bool:
        """Tell whether it is skipped.

        The arguments are the first block's, or the denoiser's where `block` is None.
        """

    def restart(self) -> None:
        """Forget the last call."""


class Masked:
    """Skips the steps of a mask (1 computed, 0 skipped) that is known before the call.

    `masks` are by branch; a branch that is not among them gets the first. In a call of another
    length every step does as the nearest one of the mask.
    """

    def __init__(self, masks: Mapping[str, str], clock: StepClock) -> None:
        self._known, self._clock = dict(masks), clock
        self._masks: dict[str, str] = {}

    def restart(self) -> None:
        """Fit the masks to the schedule of the coming call."""
        self._masks = {}

    def skips(self, branch: str, block: Any, args: Any, kwargs: Any) -> bool:
        """Tell whether this step of the branch is masked out."""
        if branch not in self._masks:
            known = self._known.get(branch) or next(iter(self._known.values()))
            self._masks[branch] = stretched(known, self._clock.total)
        step, mask = self._clock.step, self._masks[branch]
        return step < len(mask) and mask[step] == "0"


def stretched(mask: str, steps: int) -> str:
    """Return a mask for another number of steps: each does as the nearest one of the mask."""
    if steps == len(mask) or steps < 2:
        return mask if steps == len(mask) else "1" * steps
    scale = (len(mask) - 1) / (steps - 1)
    return "".join(mask[round(step * scale)] for step in range(steps))


class _Skipping:
    """The rule on a stack or a denoiser: what is skipped is forecast from what was computed."""

    def __init__(
        self, choice: Choice, clock: StepClock, statistics: dict[str, Scalar], order: int
    ) -> None:
        self._choice, self._clock = choice, clock
        self._branches = PerBranch(lambda: History(order), clock)
        self._forms: dict[str, Any] = {}
        self._tally = Tally(statistics, clock)

    def restart(self) -> None:
        """Forget the last call."""
        self._choice.restart()
        self._branches.clear()
        self._forms.clear()
        self._tally.restart()

    def reuse(self, branch: str, block: Any, args: Any, kwargs: Any) -> Any:
        """Return what is expected of this forward, or None where it must run."""
        if not self._clock.running:  # nobody says where a call begins: nothing is safe to reuse
            return None
        form = form_of(args, kwargs)
        if self._forms.get(branch) != form:  # of other latents nothing that is kept will fit
            self._branches.forget(branch)
            self._forms[branch] = form
        history = self._branches[branch]
        skipped = self._choice.skips(branch, block, args, kwargs) and bool(history)
        self._tally.add(branch, computed=not skipped)
        return history.at(self._clock.place) if skipped else None

    def computed(self, branch: str, added: Any) -> None:
        """Keep what the stack added, or the denoiser returned."""
        if self._clock.running:
            self._branches[branch].keep(self._clock.place, added)

    def around(self, branch: str, run: Run, args: Any, kwargs: Any) -> Any:
        """Return the expected output, or run the denoiser."""
        found = self.reuse(branch, None, args, kwargs)
        if found is None:
            found = run(*args, **kwargs)
            self.computed(branch, found)
        return found


def skipping(
    pipeline: Any, choice: Choice, clock: StepClock, statistics: dict[str, Scalar], name: str,
    order: int = 0, whole: bool = False,
) -> Callable[[], None]:  # fmt: skip
    """Put a choice on a pipeline's block stack, or on the `whole` denoiser; returns the undo.

    `statistics` receive what `Tally` counts; `order` is that of the forecast. A branch that
    resumes after steps in which it was not called starts from nothing.
    """
    rule = _Skipping(choice, clock, statistics, order)
    with ExitStack() as stack:
        stack.callback(clock.on_reset(rule.restart))
        around = Whole if whole else Stack
        stack.callback(around(denoiser_of(pipeline), rule, clock, name).detach)
        return stack.pop_all().close
