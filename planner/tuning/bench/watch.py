"""What a method computes, and what it keeps: seen from outside, alike for all of them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any

from planner.case.noun import Noun
from planner.case.prompts import Prompt
from planner.hooks.blocks import denoiser_of, segments
from planner.hooks.clock import StepClock
from planner.tuning.bench.rig import Rig

_LOOKS = 6
"""Steps at which live tensors are counted: a method may drop what it kept before the last one."""


class Portrait(Noun):
    """One call, watched and not timed.

    `shares` are, by branch, the share of the block stack's weights that were multiplied with at
    each step; `live` the most bytes of tensors that lay in the process when a forward began, seen
    at some steps. What a method keeps from step to step lies there then, whoever holds it.
    """

    shares: dict[str, tuple[float, ...]]
    live: int

    @property
    def computed(self) -> dict[str, float]:
        """Return by branch how many whole forwards of the stack were computed."""
        return {branch: round(sum(shares), 2) for branch, shares in self.shares.items()}

class _Watch:
    """Counts weights by step and branch; branches are told apart by the order of their calls."""

    def __init__(self, clock: StepClock) -> None:
        self.used: dict[int, dict[int, int]] = {}
        self.live = 0
        self.steps = 0
        self._clock, self._step, self._branch = clock, -1, -1

    def forward(self, *_: Any) -> None:
        """Note that the denoiser is called."""
        if self._step != self._clock.step:
            self._step, self._branch = self._clock.step, -1
        self._branch += 1
        self.steps = self._clock.total
        if self._step in {round(i * (self.steps - 1) / _LOOKS) for i in range(1, _LOOKS + 1)}:
            self.live = max(self.live, live_bytes())

    def layer(self, size: int) -> Callable[..., None]:
        """Return a hook that notes that a layer of so many weights is called."""

        def called(*_: Any) -> None:
            steps = self.used.setdefault(self._branch, {})
            steps[self._step] = steps.get(self._step, 0) + size

        return called


def portrait(rig: Rig, prompt: Prompt, arguments: Mapping[str, Any]) -> Portrait:
    """Watch one call with what is on the pipeline."""
    from torch import nn

    denoiser, clock = denoiser_of(rig.pipeline), StepClock()
    watch, whole = _Watch(clock), 0
    handles = [denoiser.register_forward_pre_hook(watch.forward)]
    for block in (block for part in segments(denoiser) for block in part.blocks):
        for layer in (one for one in block.modules() if isinstance(one, nn.Linear)):
            size = layer.weight.numel()
            whole += size
            handles.append(layer.register_forward_pre_hook(watch.layer(size)))
    detach = clock.attach(rig.pipeline.scheduler)
    try:
        with clock.call():
            rig.call(prompt, arguments)
    finally:
        detach()
        for handle in handles:
            handle.remove()
    names = rig.case.model.traits.branches or ("single",)
    return Portrait(live=watch.live, shares={
        name: tuple(round(watch.used.get(branch, {}).get(step, 0) / whole, 4)
                    for step in range(watch.steps))
        for branch, name in enumerate(names)
    })  # fmt: skip


def live_bytes() -> int:
    """Return the bytes of all tensors that Python's collector knows, each storage once."""
    import torch

    gc.collect()
    sizes: dict[int, int] = {}
    for one in gc.get_objects():
        if issubclass(type(one), torch.Tensor):
            storage = one.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())
