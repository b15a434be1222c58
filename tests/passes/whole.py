"""What tests of caches around a whole denoiser share: what goes into it and what comes out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from planner.hooks.clock import StepClock
from planner.hooks.whole import Output, latents_of, tensors_of
from planner.passes import registry
from planner.passes.base import Artifact, Context
from tests.cases import flux_case
from tests.passes.watching import Watched


class Around(Watched):
    """Keeps the latents and the output of every call of a denoiser, hooks included."""

    def __init__(self, denoiser: Any) -> None:
        self.latents: list[torch.Tensor] = []
        self.outputs: list[torch.Tensor] = []
        self.kinds: list[str] = []
        self._hooks = [
            denoiser.register_forward_pre_hook(self._begin, with_kwargs=True),
            denoiser.register_forward_hook(self._end),
        ]

    def _begin(self, module: Any, args: Any, kwargs: Any) -> None:
        self.latents.append(tensors_of(latents_of(args, kwargs))[0].clone())

    def _end(self, module: Any, args: Any, output: Any) -> None:
        self.outputs.append(Output.of(output).tensors[0].clone())
        self.kinds.append(type(output).__name__)


class Scripted(torch.nn.Module):
    """A denoiser that answers its calls with the numbers it was given, in order."""

    def __init__(self, answers: Sequence[float]) -> None:
        super().__init__()
        self._answers = iter(answers)
        self.ran = 0

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        self.ran += 1
        return torch.full_like(hidden_states, next(self._answers))


def latents(value: float, shape: tuple[int, ...] = (1, 4, 1, 2, 2)) -> torch.Tensor:
    """Return latents of a video of one frame that are all alike."""
    return torch.full(shape, value)


@contextmanager
def on(
    module: Any, passes: Mapping[str, Mapping[str, Any]], steps: int,
    artifact: Artifact | None = None, **workload: Any,
) -> Iterator[SimpleNamespace]:  # fmt: skip
    """Put passes on a denoiser alone, under a clock that runs: gives clock, step and statistics."""
    levels = torch.linspace(1.0, 0.0, steps + 1)
    scheduler = SimpleNamespace(step=lambda: None, timesteps=list(range(steps)), sigmas=levels)
    clock, undo, statistics = StepClock(), list[Callable[[], None]](), {}
    undo.append(clock.attach(scheduler))
    case = flux_case()
    case = case.model_copy(update={"workload": case.workload.model_copy(update=workload)})
    for name, settings in passes.items():
        found = registry.get(name)
        context = Context(case=case, clock=clock, artifact=artifact)
        pipeline = SimpleNamespace(transformer=module)
        undo.append(found.apply(pipeline, found.settings(**settings), context))
        statistics[name] = context.statistics
    try:
        yield SimpleNamespace(clock=clock, step=lambda: scheduler.step(), statistics=statistics)
    finally:
        while undo:
            undo.pop()()


def played(under: SimpleNamespace, module: Any, values: Sequence[float | None]) -> list[float]:
    """Call the denoiser once a step with latents of these values; None leaves a step out."""
    found = []
    with under.clock.call():
        for value in values:
            if value is not None:
                found.append(float(module(latents(value)).mean()))
            under.step()
    return found
