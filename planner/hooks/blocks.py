"""A denoiser's repeated block stack: finding it, running it or reusing what it added.

diffusers registers for every cacheable block class which argument and which output is the image
stream and which the text stream; everything here follows that registry.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

from planner.errors import UsageError
from planner.hooks.branches import SINGLE, Hook, Naming, attach
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
        self._names = tuple(inspect.signature(type(block).forward).parameters)[1:]
        self._named = known.hidden_states_argument_name, known.encoder_hidden_states_argument_name

    def inputs(self, args: Any, kwargs: Any) -> Streams:
        """Return the streams that the block was called with."""
        image = self._read(self._named[0], args, kwargs)
        return image, None if self._text is None else self._read(self._named[1], args, kwargs)

    def _read(self, name: str, args: Any, kwargs: Any) -> Any:
        # Z-Image's blocks are registered under a name that their first argument does not have.
        place = self._names.index(name) if name in self._names else 0
        return args[place] if place < len(args) else kwargs[self._names[place]]

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


class Rule(Protocol):
    """Decides once a forward whether the stack runs, and is told what a run added."""

    def reuse(self, branch: str, head: Any, args: Any, kwargs: Any) -> list[Streams] | None:
        """Return what each segment adds to its input, or None to run the stack."""

    def computed(self, branch: str, added: list[Streams]) -> None:
        """Take what each segment added to its input in a full run."""


class Stack:
    """Puts a rule on a denoiser's block stack.

    A computed forward pays for two hooks a segment; only where the stack is skipped are the
    blocks in between set aside, for that forward. Where a pipeline names no branches, the calls
    of one step are told apart by their order.
    """

    def __init__(self, denoiser: Any, rule: Rule, clock: StepClock, name: str) -> None:
        self._rule = rule
        self._segments = segments(denoiser)
        self._forms = [Form(part.blocks[0]) for part in self._segments]
        self._inputs: list[Streams] = []
        self._added: list[Streams] = []
        self._reused: list[Streams] | None = None
        self._running = SINGLE
        self._aside: list[tuple[Any, Any]] = []
        self._naming = Naming(clock)
        self._undo = [clock.on_reset(self._begin)]
        for index, part in enumerate(self._segments):
            head, tail = _Head(self, index), _Tail(self, index)
            self._undo.append(attach(denoiser, part.blocks[0], head, f"{name}_head"))
            self._undo.append(attach(denoiser, part.blocks[-1], tail, f"{name}_tail"))

    def detach(self) -> None:
        """Take every hook off again."""
        self._reset()
        while self._undo:
            self._undo.pop()()

    def _begin(self) -> None:
        self._naming.restart()
        self._reset()

    def _reset(self) -> None:
        self._inputs, self._added, self._reused = [], [], None
        self._bring_back()

    def enter(self, index: int, hook: Hook, module: Any, args: Any, kwargs: Any) -> Any:
        """Begin a segment at its first block: run it, or return its input plus what was added."""
        if index == 0:
            self._reset()
            self._running = self._naming.of(hook)
            self._reused = self._rule.reuse(self._running, module, args, kwargs)
        streams = self._forms[index].inputs(args, kwargs)
        if self._reused is None:
            self._inputs.append(streams)
            return hook.fn_ref.original_forward(*args, **kwargs)
        self._set_aside(index)
        return self._forms[index].pack(_combine(streams, self._reused[index], 1))

    def leave(self, index: int, output: Any) -> None:
        """End a segment that was run: keep what it added; after the last, tell the rule."""
        if self._reused is not None:
            return
        streams = self._forms[index].unpack(output)
        self._added.append(_combine(streams, self._inputs[index], -1))
        if index == len(self._segments) - 1:
            self._rule.computed(self._running, self._added)
            self._inputs, self._added = [], []

    def _set_aside(self, index: int) -> None:
        blocks = self._segments[index].blocks[1:]
        form = self._forms[index]
        for block in blocks:
            self._aside.append((block, vars(block).get("forward")))
            vars(block)["forward"] = partial(self._pass_through, form, block is blocks[-1])

    def _pass_through(self, form: Form, last: bool, *args: Any, **kwargs: Any) -> Any:
        if last:
            self._bring_back()
        return form.pack(form.inputs(args, kwargs))

    def _bring_back(self) -> None:
        for block, forward in self._aside:
            if forward is None:
                vars(block).pop("forward", None)
            else:
                vars(block)["forward"] = forward
        self._aside = []


def _combine(streams: Streams, others: Streams, sign: int) -> Streams:
    """Return image and text streams plus (sign 1) or less (sign -1) others."""
    image = streams[0] + others[0] if sign > 0 else streams[0] - others[0]
    if streams[1] is None or others[1] is None:
        return image, None
    return image, (streams[1] + others[1] if sign > 0 else streams[1] - others[1])


class _Head(Hook):
    def __init__(self, stack: Stack, index: int) -> None:
        super().__init__()
        self._stack = stack
        self._index = index

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        return self._stack.enter(self._index, self, module, args, kwargs)


class _Tail(Hook):
    def __init__(self, stack: Stack, index: int) -> None:
        super().__init__()
        self._stack = stack
        self._index = index

    def post_forward(self, module: Any, output: Any) -> Any:
        self._stack.leave(self._index, output)
        return output


def own_forward(block: Any) -> Callable[..., Any]:
    """Return what runs underneath all hooks on a block: its own forward, or its replacement."""
    slot = _innermost(block)
    found: Callable[..., Any] = block.forward if slot is None else getattr(*slot)
    return found


def beneath_hooks(block: Any, forward: Callable[..., Any]) -> Callable[[], None]:
    """Replace a block's own forward underneath all hooks on it; returns the undo.

    Hooks stay ordinary Python around it, so that what they do cannot break the replacement's
    graph, and the replacement is the same whatever hooks are on.
    """
    slot = _innermost(block)
    if slot is None:
        had = vars(block).get("forward")
        vars(block)["forward"] = forward
        return partial(_restore_forward, block, had)
    reference, name = slot
    inner = getattr(reference, name)
    setattr(reference, name, forward)
    return partial(setattr, reference, name, inner)


def _innermost(block: Any) -> tuple[Any, str] | None:
    """Return holder and attribute of the forward that the first hook calls; None without hooks."""
    registry = vars(block).get("_diffusers_hook")
    hooks = list(registry.hooks.values()) if registry is not None else []
    if not hooks:
        return None
    reference = hooks[0].fn_ref
    return reference, "forward" if reference.original_forward is None else "original_forward"


def _restore_forward(block: Any, had: Any) -> None:
    if had is None:
        vars(block).pop("forward", None)
    else:
        vars(block)["forward"] = had
