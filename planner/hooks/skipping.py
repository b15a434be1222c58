"""The frame of every cache that skips whole steps: decide, count, keep, forecast."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from planner.case.noun import Scalar
from planner.errors import UsageError
from planner.hooks.blocks import Added, Stack, denoiser_of
from planner.hooks.branches import PerBranch, Tally
from planner.hooks.clock import StepClock
from planner.hooks.forecast import History
from planner.hooks.groups import groups
from planner.hooks.masks import stretched
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


class _Skipping:
    """The rule on a stack or a denoiser: what is skipped is forecast from what was computed."""

    def __init__(self, choice: Choice, clock: StepClock, tally: Tally, order: int) -> None:
        self._choice, self._clock, self._tally = choice, clock, tally
        self._branches = PerBranch(lambda: History(order), clock)

    def restart(self) -> None:
        """Forget the last call."""
        self._choice.restart()
        self._branches.clear()
        self._tally.restart()

    def reuse(self, branch: str, block: Any, args: Any, kwargs: Any) -> Any:
        """Return what is expected of this forward, or None where it must run."""
        if not self._clock.running:  # nobody says where a call begins: nothing is safe to reuse
            return None
        history = self._branches.of(branch, form_of(args, kwargs))
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


class _Grouped:
    """A rule for each group of blocks: what one skips is forecast from where that one ran."""

    def __init__(self, rules: Sequence[_Skipping]) -> None:
        self._rules = rules

    def restart(self) -> None:
        """Forget the last call."""
        for rule in self._rules:
            rule.restart()

    def reuse(self, branch: str, head: Any, args: Any, kwargs: Any) -> Added:
        """Return what is expected of each group that is skipped."""
        return [rule.reuse(in_group(branch, index), head, args, kwargs)
                for index, rule in enumerate(self._rules)]  # fmt: skip

    def computed(self, branch: str, added: Added) -> None:
        """Keep what the groups that ran have added."""
        for index, (rule, streams) in enumerate(zip(self._rules, added, strict=True)):
            if streams is not None:
                rule.computed(in_group(branch, index), streams)


def in_group(branch: str, index: int) -> str:
    """Return the name under which one group's forwards of a branch are counted."""
    return f"{branch}.{index + 1}"


def skipping(
    pipeline: Any, choice: Choice, clock: StepClock, statistics: dict[str, Scalar], name: str,
    order: int = 0, whole: bool = False,
) -> Callable[[], None]:  # fmt: skip
    """Put a choice on a pipeline's block stack, or on the `whole` denoiser; returns the undo.

    `statistics` receive what `Tally` counts; `order` is that of the forecast. A branch that
    resumes after steps in which it was not called starts from nothing.
    """
    rule = _Skipping(choice, clock, Tally(statistics, clock), order)
    with ExitStack() as stack:
        stack.callback(clock.on_reset(rule.restart))
        around = Whole if whole else Stack
        stack.callback(around(denoiser_of(pipeline), rule, clock, name).detach)
        return stack.pop_all().close


def skipping_groups(
    pipeline: Any, choices: Sequence[Choice], clock: StepClock, statistics: dict[str, Scalar],
    name: str, order: int = 0,
) -> Callable[[], None]:  # fmt: skip
    """Put a choice on each group of a pipeline's blocks; returns the undo.

    `statistics` as in `skipping`, with the forwards of each group counted by themselves. Raises
    `UsageError` where there are not as many groups as choices.
    """
    denoiser, tally = denoiser_of(pipeline), Tally(statistics, clock)
    parts = groups(denoiser)
    if len(parts) != len(choices):
        raise UsageError(f"{len(choices)} masks were given for {len(parts)} groups of blocks",
                         value=len(choices), way_out="give one mask for each group")  # fmt: skip
    rule = _Grouped([_Skipping(choice, clock, tally, order) for choice in choices])
    with ExitStack() as stack:
        stack.callback(clock.on_reset(rule.restart))
        stack.callback(Stack(denoiser, rule, clock, name, parts).detach)
        return stack.pop_all().close
