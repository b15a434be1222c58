"""A denoiser's repeated block stack: finding it, running it or reusing what it added."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, Protocol

from planner.errors import UsageError
from planner.hooks.branches import SINGLE, Hook, Order, attach
from planner.hooks.clock import StepClock
from planner.hooks.streams import Form, Streams, Stretch, combine

DENOISERS = ("transformer", "unet")
"""Names of the component that a pipeline calls at every step."""


class Segment(NamedTuple):
    """One list of like blocks, such as a Flux transformer's double blocks."""

    name: str
    blocks: tuple[Any, ...]


def segments(denoiser: Any) -> tuple[Segment, ...]:
    """Return the block lists in calling order.

    Raises `UsageError` for a denoiser without blocks that diffusers has registered.
    """
    from diffusers.hooks._common import _ALL_TRANSFORMER_BLOCK_IDENTIFIERS
    from torch.nn import ModuleList

    found = tuple(
        Segment(name, tuple(child))
        for name, child in denoiser.named_children()
        if name in _ALL_TRANSFORMER_BLOCK_IDENTIFIERS and isinstance(child, ModuleList) and child
    )
    if not found:
        name = type(denoiser).__name__
        raise UsageError(f"{name} has no block list that diffusers knows", value=name,
                         way_out="leave out passes that work on blocks")  # fmt: skip
    return found


def denoiser_name(pipeline: Any) -> str:
    """Return the name of the component that is called at every step.

    Raises `UsageError` for a pipeline that has none.
    """
    for name in DENOISERS:
        if getattr(pipeline, name, None) is not None:
            return name
    kind = type(pipeline).__name__
    raise UsageError(f"{kind} has no denoiser that planner knows", value=kind,
                     way_out="use a pipeline with a transformer or unet")  # fmt: skip


def denoiser_of(pipeline: Any) -> Any:
    """Return the component that is called at every step, without a wrapper of `torch.compile`.

    Raises `UsageError` as `denoiser_name` does.
    """
    module = getattr(pipeline, denoiser_name(pipeline))
    return getattr(module, "_orig_mod", module)


def denoisers_of(pipeline: Any) -> dict[str, Any]:
    """Return every model that denoises by its component's name: two experts are two.

    Wrappers of `torch.compile` are taken off.
    """
    names = [f"{name}{number}" for name in DENOISERS for number in ("", "_2")]
    found = {name: getattr(pipeline, name, None) for name in names}
    return {name: getattr(part, "_orig_mod", part) for name, part in found.items()
            if part is not None}  # fmt: skip


Added = list[Streams | None]
"""What each segment of a stack adds to its input; None for one that runs, or that did not."""


class Rule(Protocol):
    """Decides once a forward which segments run, and is told what those that ran added."""

    def reuse(self, branch: str, head: Any, args: Any, kwargs: Any) -> Added | None:
        """Return what segments add to their input, or None to run them all."""

    def computed(self, branch: str, added: Added) -> None:
        """Take what segments added to their input, where one of them ran."""


class Stack:
    """Puts a rule on a denoiser's block stack.

    A computed forward pays for one hook a block, 2 to 3 µs; where the stack is skipped, the
    blocks behind a segment's first are set aside for that forward. What the model adds between
    blocks (ControlNet samples, VACE hints) is left out of what the rule is told: in a skipped
    forward the model adds it itself, afresh. Where a pipeline names no branches, the calls of one
    step are told apart by their order. `parts` are the segments to tell apart, the block lists by
    default.
    """

    def __init__(
        self, denoiser: Any, rule: Rule, clock: StepClock, name: str,
        parts: tuple[Segment, ...] = (),
    ) -> None:  # fmt: skip
        self._rule = rule
        self._segments = parts or segments(denoiser)
        self._forms = [Form(part.blocks[0]) for part in self._segments]
        self._stretches: dict[int, Stretch] = {}
        self._added: dict[int, Streams | None] = {}
        self._reused: Added = []
        self._running, self._open = SINGLE, False
        self._aside: dict[Any, Any] = {}
        self._order = Order(clock)
        self._undo = [clock.on_reset(self._begin),
                      attach(denoiser, denoiser, _Root(self), f"{name}_root")]  # fmt: skip
        for index, part in enumerate(self._segments):
            for block in part.blocks:
                kind = _Head if block is part.blocks[0] else _Next
                hook = kind(self, index, block is part.blocks[-1])
                self._undo.append(attach(denoiser, block, hook, name))

    def detach(self) -> None:
        """Take every hook off again."""
        self._reset()
        while self._undo:
            self._undo.pop()()

    def _begin(self) -> None:
        self._order.restart()
        self._reset()

    def _reset(self) -> None:
        self._stretches, self._added, self._reused = {}, {}, []
        for block in tuple(self._aside):
            self._bring_back(block)

    def open(self) -> None:
        """Begin a forward: one that leaves out the very first block is left to itself."""
        self._open = False

    def enter(self, index: int, hook: Hook, module: Any, args: Any, kwargs: Any) -> Any:
        """Begin a segment at its first block: run it, or return its input plus what was added."""
        if index == 0:
            self._reset()
            self._running, self._open = self._order.branch(hook), True
            found = self._rule.reuse(self._running, module, args, kwargs)
            self._reused = found or [None] * len(self._segments)
        elif not self._open:
            return hook.fn_ref.original_forward(*args, **kwargs)
        elif index - 1 in self._stretches and self._alike(index - 1, index):
            self._end(index - 1)  # its last block was left out
        streams, reused = self._forms[index].inputs(args, kwargs), self._reused[index]
        if reused is None:
            self._stretches[index] = Stretch(streams)
            return hook.fn_ref.original_forward(*args, **kwargs)
        self._set_aside(index)
        self._end(index)
        return self._forms[index].pack(combine(streams, reused, 1))

    def go_on(self, index: int, args: Any, kwargs: Any) -> None:
        """Look at what the next block of a segment is given; its first may be left out."""
        if self._open:
            streams = self._forms[index].inputs(args, kwargs)
            self._stretches.setdefault(index, Stretch(streams)).given(streams)

    def ran(self, index: int, output: Any, last: bool) -> None:
        """Look at what a block returns; after a segment's last keep what the segment added."""
        if index not in self._stretches:  # it was reused
            return
        self._stretches[index].end = self._forms[index].unpack(output)
        if last:
            self._end(index)

    def _alike(self, one: int, other: int) -> bool:
        return self._segments[one].name == self._segments[other].name

    def _end(self, index: int) -> None:
        """Keep what a segment has added; after all of them tell the rule, if any ran.

        Lists whose blocks run by turns do not end in their order.
        """
        stretch = self._stretches.pop(index, None)
        self._added[index] = None if stretch is None else stretch.added()
        if len(self._added) == len(self._segments):
            whole = [self._added[one] for one in range(len(self._segments))]
            self._added = {}
            if any(one is not None for one in whole):
                self._rule.computed(self._running, whole)

    def _set_aside(self, index: int) -> None:
        form = self._forms[index]
        for block in self._segments[index].blocks[1:]:
            self._aside[block] = vars(block).get("forward")
            vars(block)["forward"] = partial(self._pass_through, form, block)

    def _pass_through(self, form: Form, block: Any, *args: Any, **kwargs: Any) -> Any:
        self._bring_back(block)
        return form.pack(form.inputs(args, kwargs))

    def _bring_back(self, block: Any) -> None:
        forward = self._aside.pop(block)
        if forward is None:
            vars(block).pop("forward", None)
        else:
            vars(block)["forward"] = forward


class _Root(Hook):
    """Tells the stack when a forward begins."""

    _is_stateful = False

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self._stack = stack

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self._stack.open()
        return args, kwargs


class _OnBlock(Hook):
    """Tells the stack what a block is given and what it returns."""

    def __init__(self, stack: Stack, index: int, last: bool) -> None:
        super().__init__()
        self._stack, self._index, self._last = stack, index, last

    def post_forward(self, module: Any, output: Any) -> Any:
        self._stack.ran(self._index, output, self._last)
        return output


class _Head(_OnBlock):
    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        return self._stack.enter(self._index, self, module, args, kwargs)


class _Next(_OnBlock):
    _is_stateful = False  # it need not be told the branch

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self._stack.go_on(self._index, args, kwargs)
        return args, kwargs
