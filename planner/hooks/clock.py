"""The one step clock: which denoising step and branch is being computed now.

It follows the scheduler, not the hooks' own call counts, so that a branch that is skipped, a
solver that calls twice or an exception in the middle of a run cannot shift it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import MethodType
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
        self._levels: tuple[float, ...] | None = None

    @property
    def total(self) -> int:
        """Return the number of denoising steps of the running call."""
        timesteps = getattr(self._scheduler, "timesteps", None)
        skipped = getattr(self._scheduler, "begin_index", None) or 0  # image-to-image starts later
        return 0 if timesteps is None else max(0, len(timesteps) - skipped)

    @property
    def place(self) -> float:
        """Return where on the schedule the clock is: the noise level, else the step's number.

        Levels serve where they fall from step to step, so that no two places are equal.
        """
        if self._levels is None:  # read once a call: sigmas may lie on the device
            self._levels = self._read_levels()
        return self._levels[self.step] if self.step < len(self._levels) else float(self.step)

    @property
    def level(self) -> float:
        """Return the part of noise in the latents, one at most: without levels, of steps to go."""
        if self._levels is None:
            self._levels = self._read_levels()
        if self.step >= len(self._levels):
            return 1.0 - self.step / max(1, self.total)
        found = self._levels[self.step]
        return found / (1.0 + found) if self._levels[0] > 1.0 + 1e-6 else found

    def _read_levels(self) -> tuple[float, ...]:
        sigmas = getattr(self._scheduler, "sigmas", None)
        if sigmas is None or not self.total:
            return ()
        first = getattr(self._scheduler, "begin_index", None) or 0
        levels = tuple(map(float, sigmas[first : first + self.total].tolist()))
        falling = all(a > b for a, b in pairwise(levels))
        return levels if falling and len(levels) == self.total else ()

    def on_reset(self, reset: Callable[[], None]) -> Callable[[], None]:
        """Register a function that clears a hook's state; returns its unregistration."""
        self._resets.append(reset)
        return lambda: self._resets.remove(reset)

    def attach(self, scheduler: Any) -> Callable[[], None]:
        """Count this scheduler's steps from now on; returns the undo.

        New timesteps in the middle of a call (a video made chunk by chunk) count from zero again.
        """
        undo = [_after(scheduler, "step", self._stepped)]
        if hasattr(scheduler, "set_timesteps"):
            undo.append(_after(scheduler, "set_timesteps", self._reset))
        self._scheduler = scheduler

        def detach() -> None:
            while undo:
                undo.pop()()
            self._scheduler = None

        return detach

    def _stepped(self) -> None:
        self.step += 1

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
        self._levels = None
        for reset in self._resets:
            reset()


def _after(scheduler: Any, name: str, then: Callable[[], None]) -> Callable[[], None]:
    """Call `then` after every call of a scheduler's method; returns the undo.

    Pipelines look at the method's signature to learn what it takes, and some copy the scheduler:
    the signature stays, and a copy calls its own method and nothing more.
    """
    bound = getattr(scheduler, name)
    inner = getattr(bound, "__func__", None)
    if inner is None:  # a plain function somebody set on the instance
        def inner(_: Any, *args: Any, **kwargs: Any) -> Any:
            return bound(*args, **kwargs)

    @functools.wraps(inner)
    def method(own: Any, *args: Any, **kwargs: Any) -> Any:
        result = inner(own, *args, **kwargs)
        if own is scheduler:
            then()
        return result

    had = vars(scheduler).get(name)
    setattr(scheduler, name, MethodType(method, scheduler))

    def undo() -> None:
        if had is None:
            delattr(scheduler, name)
        else:
            setattr(scheduler, name, had)

    return undo
