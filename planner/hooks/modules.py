"""Parts of a denoiser's blocks that answer with what they gave before, decided around the block.

A hook on each block hands its parts what they are to answer, or takes what they made. The parts
themselves look at no step and no branch. So a compiled block, whose code lies inside that hook,
needs one graph in which a part runs and one in which it does not, whatever the schedule; a hook on
the part would be compiled into the block together with the step that it was first seen at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import MethodType
from typing import Any, NamedTuple, Protocol

from planner.hooks.beneath import beneath_hooks, own_forward
from planner.hooks.blocks import segments
from planner.hooks.branches import SINGLE, Hook, Order, attach
from planner.hooks.clock import StepClock
from planner.hooks.whole import form_of


class Place(NamedTuple):
    """A block, by the name of its list, and paths of parts inside it."""

    listed: str
    block: Any
    parts: tuple[str, ...]


def places(
    denoiser: Any, parts_of: Callable[[str, Any], tuple[str, ...]]
) -> tuple[Place, ...]:
    """Return the blocks in which `parts_of` (list, block) finds parts, in calling order.

    Raises `UsageError` for a denoiser without a block list that diffusers knows.
    """
    blocks = ((listed.name, block) for listed in segments(denoiser) for block in listed.blocks)
    found = (Place(listed, block, parts_of(listed, block)) for listed, block in blocks)
    return tuple(place for place in found if place.parts)


class Keeper(Protocol):
    """Decides what parts answer, and is told what those made that ran."""

    def begin(self, branch: str, form: Any) -> None:
        """Begin a forward of a branch, at the first of its blocks that runs.

        `form` are the shapes of the latents that the denoiser was called with.
        """

    def answers(self, place: int, args: Any, kwargs: Any) -> Sequence[Any]:
        """Return what each part of a place answers, None where it runs; with the block's inputs."""

    def keep(self, place: int, made: Sequence[Any]) -> None:
        """Take what each part of a place made, None where it did not run."""


class _Part:
    """What a module is to answer, what it made, and its own forward."""

    def __init__(self, module: Any) -> None:
        self.own = own_forward(module)
        self.given: Any = None
        self.made: Any = None


_PART = "_planner_part"


def _forward(module: Any, *args: Any, **kwargs: Any) -> Any:
    """Give what a module is to answer, else run it: stands beneath all hooks on it.

    One function bound to each module, since a compiler tells callable objects apart by identity,
    and would compile every block anew.
    """
    part = vars(module)[_PART]
    if part.given is not None:
        return part.given
    part.made = part.own(*args, **kwargs)
    return part.made


def _stand_in(module: Any) -> tuple[_Part, Callable[[], None]]:
    """Put a part in the place of a module's forward; returns it and the undo."""
    part = vars(module)[_PART] = _Part(module)
    restore = beneath_hooks(module, MethodType(_forward, module))

    def undo() -> None:
        restore()
        del vars(module)[_PART]

    return part, undo


class _Frame:
    """What the hooks on a denoiser and its blocks share: the branch and the parts by place."""

    def __init__(self, keeper: Keeper, clock: StepClock) -> None:
        self._keeper, self._clock, self._order = keeper, clock, Order(clock)
        self._branch, self._form, self._begun = SINGLE, (), False
        self.parts: list[list[_Part]] = []

    def restart(self) -> None:
        self._order.restart()

    def forward(self, hook: Hook, form: tuple[Any, ...]) -> None:
        """Name the branch of a forward that may begin: another hook may answer without it."""
        self._branch, self._form, self._begun = self._order.branch(hook), form, False

    def block(self, place: int, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a block whose parts answer or are kept."""
        if not self._clock.running:  # nobody says where a call begins: nothing is safe to reuse
            return run(*args, **kwargs)
        if not self._begun:
            self._begun = True
            self._keeper.begin(self._branch, self._form)
        parts = self.parts[place]
        for part, given in zip(parts, self._keeper.answers(place, args, kwargs), strict=True):
            part.given, part.made = given, None
        try:
            output = run(*args, **kwargs)
            self._keeper.keep(place, [part.made for part in parts])
        finally:
            for part in parts:  # outside its block a part always runs
                part.given = part.made = None
        return output


class _Root(Hook):
    def __init__(self, frame: _Frame) -> None:
        super().__init__()
        self._frame = frame

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self._frame.forward(self, form_of(args, kwargs))
        return args, kwargs


class _Around(Hook):
    def __init__(self, frame: _Frame, place: int) -> None:
        super().__init__()
        self._frame, self._place = frame, place

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        return self._frame.block(self._place, self.fn_ref.original_forward, args, kwargs)


def kept_inside(
    denoiser: Any, found: Sequence[Place], keeper: Keeper, clock: StepClock, name: str
) -> Callable[[], None]:
    """Put a keeper on parts of a denoiser's blocks; returns the undo.

    The keeper clears its own state with the clock's `on_reset`.
    """
    frame = _Frame(keeper, clock)
    with ExitStack() as stack:
        stack.callback(clock.on_reset(frame.restart))
        stack.callback(attach(denoiser, denoiser, _Root(frame), f"{name}_root"))
        for index, place in enumerate(found):
            frame.parts.append([])
            for path in place.parts:
                part, undo = _stand_in(place.block.get_submodule(path))
                frame.parts[-1].append(part)
                stack.callback(undo)
            stack.callback(attach(denoiser, place.block, _Around(frame, index), name))
        return stack.pop_all().close
