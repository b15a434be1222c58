"""Traces what one pipeline call computes: every operation of one short real call, counted.

One step is run at the workload's shapes; the denoise phases then count for all steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from planner.case.work import Phase, Work
from planner.case.workload import Workload
from planner.errors import UsageError
from planner.hooks.blocks import DENOISERS, denoiser_of
from planner.hooks.branches import SINGLE, Hook, Order, attach
from planner.hooks.clock import StepClock
from planner.prediction.components import part_of
from planner.prediction.counting import Counting, Scope, Tally, blocks_of, fixed_tensors

_PHASES = ("encode", "denoise", "decode")

Place = tuple[str, str | None]
"""Phase and branch."""


def trace(pipeline: Any, workload: Workload, prompt: str = "a picture") -> Work:
    """Return the work of the reference call, from a real call of one step.

    Whatever is on the pipeline is counted as it runs. Where a pipeline names no branches, calls of
    one step are told apart by their order. Raises `UsageError` for a pipeline whose denoiser is
    not called.
    """
    counter = _Counter(pipeline)
    call = dict(workload.call) | {"num_inference_steps": 1}
    size = workload.batch_size
    if size > 1 and isinstance(call.get("negative_prompt"), str):
        call["negative_prompt"] = [call["negative_prompt"]] * size  # type: ignore[assignment]
    generator = torch.Generator("cpu").manual_seed(0)
    with counter.watching(), torch.no_grad():
        pipeline(prompt=prompt if size == 1 else [prompt] * size, generator=generator,
                 output_type="np", **call)  # fmt: skip
    height, width = workload.size
    drawn = {"height": height, "width": width, "batch": workload.images}
    return counter.work(workload.steps).model_copy(update=drawn)


@dataclass
class _Counter:
    """Follows a pipeline's components into phases and branches."""

    pipeline: Any
    calls: dict[Place, int] = field(default_factory=dict)
    tallies: dict[Place, Tally] = field(default_factory=dict)
    counting: Counting = field(init=False)

    def __post_init__(self) -> None:
        modules = _modules(self.pipeline).values()
        tensors = [tensor for module in modules for tensor in fixed_tensors(module)]
        self.counting = Counting(Scope(), tensors)

    def work(self, steps: int) -> Work:
        """Return what was counted as phases in calling order, denoise phases for all steps."""
        if not any(name == "denoise" for name, _ in self.calls):
            name = type(self.pipeline).__name__
            raise UsageError(f"{name} did not call its denoiser", value=name,
                             way_out="trace a text-to-image pipeline")  # fmt: skip
        order = sorted(self.calls, key=lambda place: _PHASES.index(place[0]))
        parts = tuple(
            part_of(name, _phase_of(name), module)
            for name, module in _modules(self.pipeline).items()
        )
        return Work(phases=tuple(self._phase(place, steps) for place in order), parts=parts)

    def _phase(self, place: Place, steps: int) -> Phase:
        calls, tally = self.calls[place], self.tallies[place]
        name, branch = place
        return Phase.model_validate({
            "name": name, "branch": branch, "calls": steps if name == "denoise" else calls,
            "operations": tally.operations(calls), "peak": tally.peak,
            "copies": tally.crest / tally.peak if tally.peak else 1.0,
        })  # fmt: skip

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count while the block runs; no hook is left behind."""
        denoiser = denoiser_of(self.pipeline)
        scope = self.counting.scope
        clock = StepClock()
        with ExitStack() as stack:
            if hasattr(self.pipeline, "scheduler"):
                stack.callback(clock.attach(self.pipeline.scheduler))
            branch = _Branch(self, Order(clock))
            stack.callback(attach(denoiser, denoiser, branch, "planner_trace"))
            scope.follow(stack, denoiser, blocks_of(denoiser))
            encoders = [one for one in _modules(self.pipeline).items() if "encoder" in one[0]]
            for index, (name, module) in enumerate(encoders):
                scope.follow(stack, module, prefix=name)
                self._open(stack, module, ("encode", None), counts=index == 0)
            decoder = getattr(getattr(self.pipeline, "vae", None), "decoder", None)
            if decoder is not None:
                scope.follow(stack, decoder, prefix="decoder")
                self._open(stack, decoder, ("decode", None))
            stack.enter_context(self.counting)
            yield

    def _open(self, stack: ExitStack, root: Any, place: Place, counts: bool = True) -> None:
        def enter(*_: Any) -> None:
            self.begin(place, counts)

        def leave(*_: Any) -> None:
            self.counting.end()

        stack.callback(root.register_forward_pre_hook(enter).remove)
        stack.callback(root.register_forward_hook(leave, always_call=True).remove)

    def begin(self, place: Place, counts: bool = True) -> None:
        """Enter a phase; `counts` is False for a second component of the same call."""
        self.calls[place] = self.calls.get(place, 0) + int(counts)
        self.counting.begin(self.tallies.setdefault(place, Tally()))


class _Branch(Hook):
    """Opens the denoise phase of the branch that the pipeline names, or whose turn it is."""

    def __init__(self, counter: _Counter, order: Order) -> None:
        super().__init__()
        self._counter, self._order = counter, order

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        branch = self._order.branch(self)
        self._counter.begin(("denoise", None if branch == SINGLE else branch))
        return args, kwargs

    def post_forward(self, module: Any, output: Any) -> Any:
        self._counter.counting.end()
        return output


def _modules(pipeline: Any) -> dict[str, Any]:
    """Return the components that compute: denoiser, text encoders and VAE, by name."""
    return {
        name: getattr(module, "_orig_mod", module)
        for name, module in pipeline.components.items()
        if isinstance(module, torch.nn.Module)
    }


def _phase_of(name: str) -> str:
    if name.startswith(DENOISERS):
        return "denoise"
    return "decode" if name == "vae" else "encode"
