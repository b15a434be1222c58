"""The one step clock: which denoising step and branch is being computed now.

It follows the scheduler, not the hooks' own call counts, so that a branch that is skipped, a
solver that calls twice or an exception in the middle of a run cannot shift it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class StepClock:
    """Counts `scheduler.step` calls within one pipeline call.

    `step` is the index of the step being computed, `total` the number of steps of this call
    (0 before the scheduler has been given its timesteps). Hooks that keep state register a
    reset, which runs at the start of every call and in `finally`.
    """

    def __init__(self) -> None:
        self.step = 0
        self.running = False
        self._scheduler: Any = None
        self._resets: list[Callable[[], None]] = []

    @property
    def total(self) -> int:
        """Return the number of denoising steps of the running call."""
        timesteps = getattr(self._scheduler, "timesteps", None)
        return 0 if timesteps is None else len(timesteps)

    def on_reset(self, reset: Callable[[], None]) -> Callable[[], None]:
        """Register a function that clears a hook's state; returns its unregistration."""
        self._resets.append(reset)
        return lambda: self._resets.remove(reset)

    def attach(self, scheduler: Any) -> Callable[[], None]:
        """Count this scheduler's steps from now on; returns the undo."""
        original = scheduler.step

        def step(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self.step += 1
            return result

        had_own = "step" in vars(scheduler)
        scheduler.step = step
        self._scheduler = scheduler

        def detach() -> None:
            if had_own:
                scheduler.step = original
            else:
                del scheduler.step
            self._scheduler = None

        return detach

    @contextmanager
    def call(self) -> Iterator[None]:
        """Frame one pipeline call: state is reset before it and after it, whatever happens."""
        self._reset()
        self.running = True
        try:
            yield
        finally:
            self.running = False
            self._reset()

    def _reset(self) -> None:
        self.step = 0
        for reset in self._resets:
            reset()
