"""Blocks that repeat are run once: those like it count the same, under their own names.

Only for the meta device, where a block's result is nothing but its shape.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from planner.prediction.counting import Counting, Tally
from planner.prediction.lifetimes import storage_of


class _Seen(NamedTuple):
    """What one run of a block did: its operations, its name, and what it returned.

    An output is a new tensor's shape and dtype, the place of an input that it shares its memory
    with, or a plain value.
    """

    tally: Tally
    path: str
    outputs: list[tuple[str, Any, Any]]
    form: Any


class Repeats:
    """Watches the module lists of a component while it is counted."""

    def __init__(self, counting: Counting) -> None:
        self._counting = counting
        self._seen: dict[Any, _Seen] = {}

    def watch(self, stack: ExitStack, root: Any, prefix: str = "") -> None:
        """Let like blocks repeat the first until the stack is left."""
        for name, module in root.named_modules():
            if isinstance(module, torch.nn.ModuleList) and len(module) > 1:
                for index, block in enumerate(module):
                    path = ".".join(part for part in (prefix, name, str(index)) if part)
                    block.forward = self._instead(block, path)
                    stack.callback(delattr, block, "forward")

    def _instead(self, block: Any, path: str) -> Callable[..., Any]:
        run, like = block.forward, (path.rpartition(".")[0], *_structure(block))

        def forward(*args: Any, **kwargs: Any) -> Any:
            inputs, form = tree_flatten((args, kwargs))
            key = (like, str(form), tuple(map(_look, inputs)))
            seen = self._seen.get(key)
            if seen is not None:
                self._counting.repeat(seen.tally, seen.path, path)
                return _again(seen, inputs)
            with self._counting.apart() as tally:
                result = run(*args, **kwargs)
            self._seen[key] = _remembered(tally, path, inputs, result)
            return result

        return forward


def _structure(block: Any) -> tuple[Any, ...]:
    """Return what makes two blocks of a list alike: class and weights."""
    weights = ((name, tuple(w.shape), w.dtype) for name, w in block.state_dict().items())
    return (type(block), *weights)


def _look(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.dtype)
    return value if isinstance(value, int | float | str | bool | None) else type(value)


def _remembered(tally: Tally, path: str, inputs: list[Any], result: Any) -> _Seen:
    """Keep sizes of what came out; the tensors themselves would count as alive."""
    given = {storage_of(one): at for at, one in enumerate(inputs) if isinstance(one, torch.Tensor)}
    values, form = tree_flatten(result)
    outputs: list[tuple[str, Any, Any]] = []
    for value in values:
        if not isinstance(value, torch.Tensor):
            outputs.append(("value", value, None))
        elif storage_of(value) in given:
            outputs.append(("input", given[storage_of(value)], None))
        else:
            outputs.append(("new", tuple(value.shape), value.dtype))
    return _Seen(tally, path, outputs, form)


def _again(seen: _Seen, inputs: list[Any]) -> Any:
    values = []
    for kind, what, dtype in seen.outputs:
        if kind == "new":
            values.append(torch.empty(what, dtype=dtype, device="meta"))
        else:
            values.append(inputs[what] if kind == "input" else what)
    return tree_unflatten(values, seen.form)
