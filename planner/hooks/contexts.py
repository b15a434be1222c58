"""Names a step's calls where the pipeline names none: diffusers' caches keep their state by name.

Some pipelines set no `cache_context` (diffusers issue 12760), and a cache then refuses to run.
Denoisers without diffusers' `CacheMixin` are named as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planner.hooks.branches import SINGLE, Hook, Order, attach
from planner.hooks.clock import StepClock


class _Naming(Hook):
    """Sets a context around a forward that has none, and clears it whatever happens."""

    def __init__(self, clock: StepClock, order: Order) -> None:
        super().__init__()
        self._clock, self._order = clock, order

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        from diffusers.models.cache_utils import CacheMixin

        if self.contexts._context is not None:  # the pipeline's own
            return self.fn_ref.original_forward(*args, **kwargs)
        # Outside a pipeline call nobody says where a step begins: there is nothing to count.
        name = self._order.name() if self._clock.running else SINGLE
        with CacheMixin.cache_context(module, name):
            return self.fn_ref.original_forward(*args, **kwargs)


def named_calls(denoiser: Any, clock: StepClock, name: str) -> Callable[[], None]:
    """Name every call of a denoiser by its order within the step; returns the undo.

    A name that the pipeline gives stays. `name` is the hook's own.
    """
    order = Order(clock)
    detach = attach(denoiser, denoiser, _Naming(clock, order), name)
    stop = clock.on_reset(order.restart)

    def undo() -> None:
        stop()
        detach()

    return undo
