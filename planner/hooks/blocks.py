"""A denoiser's repeated block stack: finding it, running it or reusing what it added.

diffusers registers for every cacheable block class which argument and which output is the image
stream and which the text stream; everything here follows that registry.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, NamedTuple, Protocol

from planner.errors import UsageError
from planner.hooks.branches import SINGLE, Hook, Order, attach
from planner.hooks.clock import StepClock

Streams = tuple[Any, Any]
"""Image tokens and text tokens (None where a block has one stream); batch × tokens × width."""


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


class Form:
    """How one block class takes and returns its streams."""

    def __init__(self, block: Any) -> None:
        from diffusers.hooks._helpers import TransformerBlockRegistry

        known = TransformerBlockRegistry.get(type(block))
        self._image = known.return_hidden_states_index
        self._text = known.return_encoder_hidden_states_index
        names = tuple(inspect.signature(type(block).forward).parameters)[1:]
        self._image_at = _place(known.hidden_states_argument_name, names)
        self._text_at = _place(known.encoder_hidden_states_argument_name, names)

    def inputs(self, args: Any, kwargs: Any) -> Streams:
        """Return the streams that the block was called with."""
        place, name = self._image_at
        image = args[place] if place < len(args) else kwargs[name]
        if self._text is None:
            return image, None
        place, name = self._text_at
        return image, args[place] if place < len(args) else kwargs[name]

    def unpack(self, output: Any) -> Streams:
        """Return the streams of a block's output."""
        if self._text is None:
            return (output[self._image] if isinstance(output, tuple) else output), None
        return output[self._image], output[self._text]

    def pack(self, streams: Streams) -> Any:
        """Return streams as the block would."""
        image, text = streams
        if self._text is None:
            return image
        output = [None, None]
        output[self._image], output[self._text] = image, text
        return tuple(output)


def _place(name: str, names: tuple[str, ...]) -> tuple[int, str]:
    # Z-Image's blocks are registered under a name that their first argument does not have.
    place = names.index(name) if name in names else 0
    return place, names[place]


class Rule(Protocol):
    """Decides once a forward whether the stack runs, and is told what a run added."""

    def reuse(self, branch: str, head: Any, args: Any, kwargs: Any) -> list[Streams] | None:
        """Return what each segment adds to its input, or None to run the stack."""

    def computed(self, branch: str, added: list[Streams]) -> None:
        """Take what each segment added to its input in a full run."""


class Stack:
    """Puts a rule on a denoiser's block stack.

    A computed forward pays for one hook a block, 2 to 3 µs; where the stack is skipped, the
    blocks behind a segment's first are set aside for that forward. What the model adds between
    blocks (ControlNet samples, VACE hints) is left out of what the rule is told: in a skipped
    forward the model adds it itself, afresh. Where a pipeline names no branches, the calls of one
    step are told apart by their order.
    """

    def __init__(self, denoiser: Any, rule: Rule, clock: StepClock, name: str) -> None:
        self._rule = rule
        self._segments = segments(denoiser)
        self._forms = [Form(part.blocks[0]) for part in self._segments]
        self._stretches: dict[int, _Stretch] = {}
        self._added: list[Streams] = []
        self._reused: list[Streams] | None = None
        self._running = SINGLE
        self._aside: dict[Any, Any] = {}
        self._order = Order(clock)
        self._undo = [clock.on_reset(self._begin)]
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
        self._stretches, self._added, self._reused = {}, [], None
        for block in tuple(self._aside):
            self._bring_back(block)

    def enter(self, index: int, hook: Hook, module: Any, args: Any, kwargs: Any) -> Any:
        """Begin a segment at its first block: run it, or return its input plus what was added."""
        if index == 0:
            self._reset()
            self._running = self._order.branch(hook)
            self._reused = self._rule.reuse(self._running, module, args, kwargs)
        streams = self._forms[index].inputs(args, kwargs)
        if self._reused is None:
            self._stretches[index] = _Stretch(streams)
            return hook.fn_ref.original_forward(*args, **kwargs)
        self._set_aside(index)
        return self._forms[index].pack(_combine(streams, self._reused[index], 1))

    def go_on(self, index: int, args: Any, kwargs: Any) -> None:
        """Look at what the next block of a segment is given."""
        self._stretches[index].given(self._forms[index].inputs(args, kwargs))

    def ran(self, index: int, output: Any, last: bool) -> None:
        """Look at what a block returns; after a segment's last keep what the segment added."""
        if self._reused is not None:
            return
        self._stretches[index].end = self._forms[index].unpack(output)
        if last:
            self._added.append(self._stretches.pop(index).added())
            if index == len(self._segments) - 1:
                added, self._added = self._added, []
                self._rule.computed(self._running, added)

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


def _combine(streams: Streams, others: Streams, sign: int) -> Streams:
    """Return image and text streams plus (sign 1) or less (sign -1) others."""
    image = streams[0] + others[0] if sign > 0 else streams[0] - others[0]
    if streams[1] is None or others[1] is None:
        return image, None
    return image, (streams[1] + others[1] if sign > 0 else streams[1] - others[1])


class _Stretch:
    """Blocks of a segment that have run, and what they have added without the model's additions.

    The model has added something where a block is not given the very tensors that the block before
    it returned; an addition in place would not be noticed.
    """

    def __init__(self, start: Streams) -> None:
        self._start = self.end = start
        self._before: Streams | None = None

    def given(self, streams: Streams) -> None:
        """Take what the next block is given."""
        if streams[0] is not self.end[0] or streams[1] is not self.end[1]:
            self._before, self._start = self.added(), streams

    def added(self) -> Streams:
        """Return what the blocks have added up to here."""
        since = _combine(self.end, self._start, -1)
        return since if self._before is None else _combine(self._before, since, 1)


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
