"""What tests of reused parts of blocks share: a running clock, and what really runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from planner.case.work import Phase, Work
from planner.hooks.attention import attention_in, kinds_at
from planner.hooks.clock import StepClock
from planner.passes import registry
from planner.passes.base import Context
from tests.cases import flux_case
from tests.passes.driving import Bench


class Products(TorchFunctionMode):
    """Adds up the floating-point operations of linear layers that really run, and their weights."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0.0
        self.weights: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.linear:
            self.flops += 2.0 * args[0].numel() * args[1].shape[0]
            self.weights.append(args[1])
        return func(*args, **(kwargs or {}))


    def ran(self, layers: list[Any]) -> int:
        """Return how many of these layers ran."""
        return sum(any(weight is layer.weight for weight in self.weights) for layer in layers)


@contextmanager
def put_inside(module: Any, steps: int, plan: dict[str, dict[str, Any]]) -> Iterator[Any]:
    """Put passes on a denoiser alone under a running clock; gives their statistics and a step."""
    with stepping(steps) as (clock, step):
        undo, statistics = [], {}
        for name, settings in plan.items():
            found = registry.get(name)
            context = Context(case=flux_case(), clock=clock)
            pipeline = SimpleNamespace(transformer=module)
            undo.append(found.apply(pipeline, found.settings(**settings), context))
            statistics[name] = context.statistics
        yield statistics, step
        while undo:
            undo.pop()()


def flops(bench: Bench) -> float:
    """The floating-point operations of the linear layers of a call."""
    with Products() as counted:
        bench.draw()
    return counted.flops


def said(work: Work) -> float:
    """The same of the denoiser alone, by the work."""

    def of(phase: Phase) -> float:
        linear = (op for op in phase.operations if op.kind == "linear")
        return phase.calls * sum(op.flops * op.share for op in linear)

    return sum(of(phase) for phase in work.phases if phase.name == "denoise")


@contextmanager
def attention_ran(module: Any) -> Iterator[dict[str, int]]:
    """Count by kind the attention modules of a denoiser whose linear layers run."""
    ran: dict[str, int] = {}
    hooks = []
    for place in attention_in(module):
        for path, kind in zip(place.parts, kinds_at(place), strict=True):
            inside = place.block.get_submodule(path).modules()
            first = next(one for one in inside if isinstance(one, torch.nn.Linear))

            def count(*_: Any, kind: str = kind) -> None:
                ran[kind] = ran.get(kind, 0) + 1

            hooks.append(first.register_forward_pre_hook(count))
    yield ran
    for hook in hooks:
        hook.remove()


@contextmanager
def stepping(steps: int) -> Iterator[tuple[StepClock, Callable[[], Any]]]:
    """A running clock on a scheduler of so many steps, and what makes it step."""
    clock = StepClock()
    scheduler = SimpleNamespace(step=lambda: None, timesteps=list(range(steps)))
    detach = clock.attach(scheduler)
    with clock.call():
        yield clock, lambda: scheduler.step()
    detach()
