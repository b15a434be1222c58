"""A denoiser's whole forward: run it, or stand in for its output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from planner.hooks.branches import Hook, Order, attach
from planner.hooks.clock import StepClock

Run = Callable[..., Any]
"""The forward beneath, with its own arguments."""

LATENTS = ("hidden_states", "sample", "x")
"""What denoisers of diffusers call the noisy latents that they are given."""


class Output(NamedTuple):
    """What a forward returned: its tensors, and how they are packed."""

    tensors: list[Any]
    packing: Any

    @classmethod
    def of(cls, output: Any) -> Output:
        """Take an output apart: a tensor, a tuple, a list or one of diffusers' output classes."""
        from torch.utils._pytree import tree_flatten

        return cls(*tree_flatten(output))

    def packed(self, tensors: Sequence[Any]) -> Any:
        """Return other tensors packed in the same way."""
        from torch.utils._pytree import tree_unflatten

        return tree_unflatten(list(tensors), self.packing)


class Rule(Protocol):
    """Stands around a denoiser's forward."""

    def around(self, branch: str, run: Run, args: Any, kwargs: Any) -> Any:
        """Return the output of this forward: what `run` gives, or what stands in for it."""


class Whole:
    """Puts a rule around a denoiser's forward.

    Where a pipeline names no branches, the calls of one step are told apart by their order.
    """

    def __init__(self, denoiser: Any, rule: Rule, clock: StepClock, name: str) -> None:
        order = Order(clock)
        self._undo = [clock.on_reset(order.restart)]
        self._undo.append(attach(denoiser, denoiser, _Around(rule, order), name))

    def detach(self) -> None:
        """Take the hook off again."""
        while self._undo:
            self._undo.pop()()


class _Around(Hook):
    def __init__(self, rule: Rule, order: Order) -> None:
        super().__init__()
        self._rule, self._order = rule, order

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        branch = self._order.branch(self)
        return self._rule.around(branch, self.fn_ref.original_forward, args, kwargs)


def latents_of(args: Any, kwargs: Any) -> Any:
    """Return the noisy latents that a denoiser was called with, a tensor or a list of them."""
    named = next((kwargs[name] for name in LATENTS if name in kwargs), None)
    return named if named is not None else args[0]


def form_of(args: Any, kwargs: Any) -> tuple[Any, ...]:
    """Return the shapes of the latents, or of the tokens that a block was called with.

    They change within a call where guidance is switched off in a batch, or the size grows.
    """
    return tuple(tensor.shape for tensor in tensors_of(latents_of(args, kwargs)))


def tensors_of(value: Any) -> list[Any]:
    """Return the tensors of a nest of them, in order."""
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(value) if hasattr(leaf, "shape")]


