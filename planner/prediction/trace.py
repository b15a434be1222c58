"""Traces what one pipeline call computes: every operation of one short real call, counted.

One step is run at the workload's shapes; the denoise phases then count for all steps. Floating-
point operations come from torch's own formulas; bytes are what each operation reads and writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from planner.case.work import Kind, Operation, Phase, Work
from planner.case.workload import Workload
from planner.errors import UsageError
from planner.hooks.blocks import denoiser_of, segments
from planner.hooks.branches import SINGLE, Hook, attach

_NORMS = ("layer_norm", "rms_norm", "group_norm", "batch_norm", "rsqrt")
_PHASES = ("encode", "denoise", "decode")

Place = tuple[str, str | None]
"""Phase and branch."""


def trace(pipeline: Any, workload: Workload, prompt: str = "a picture") -> Work:
    """Return the work of the reference call, from a real call of one step.

    Whatever is on the pipeline is counted as it runs. Raises `UsageError` for a pipeline whose
    denoiser is not called.
    """
    counter = _Counter(pipeline)
    call = dict(workload.call) | {"num_inference_steps": 1}
    size = workload.batch_size
    if size > 1 and isinstance(call.get("negative_prompt"), str):
        call["negative_prompt"] = [call["negative_prompt"]] * size  # type: ignore[assignment]
    generator = torch.Generator("cpu").manual_seed(0)
    with counter.watching(), torch.no_grad():
        pipeline(prompt if size == 1 else [prompt] * size, generator=generator,
                 output_type="np", **call)  # fmt: skip
    height, width = workload.size
    drawn = {"height": height, "width": width, "batch": workload.images}
    return counter.work(workload.steps).model_copy(update=drawn)


@dataclass
class _Sum:
    """What one group of operations adds up to over all calls."""

    flops: float = 0.0
    bytes: float = 0.0
    launches: int = 0
    dtype: str = ""


@dataclass
class _Counter:
    """Follows modules into phases and branches, and sums operations by module and kind."""

    pipeline: Any
    calls: dict[Place, int] = field(default_factory=dict)
    sums: dict[Place, dict[tuple[str, Kind, bool], _Sum]] = field(default_factory=dict)
    place: Place | None = None
    path: list[str] = field(default_factory=list)
    blocks: set[str] = field(default_factory=set)

    def work(self, steps: int) -> Work:
        """Return what was counted as phases in calling order, denoise phases for all steps."""
        if not any(name == "denoise" for name, _ in self.calls):
            name = type(self.pipeline).__name__
            raise UsageError(f"{name} did not call its denoiser", value=name,
                             way_out="trace a text-to-image pipeline")  # fmt: skip
        order = sorted(self.calls, key=lambda place: _PHASES.index(place[0]))
        return Work(phases=tuple(self._phase(place, steps) for place in order))

    def _phase(self, place: Place, steps: int) -> Phase:
        calls = self.calls[place]
        operations = tuple(
            Operation(
                path=path, kind=kind, flops=group.flops / calls, bytes=group.bytes / calls,
                dtype=group.dtype, block=block, launches=max(1, group.launches // calls),
            )
            for (path, kind, block), group in self.sums.get(place, {}).items()
        )  # fmt: skip
        name, branch = place
        total = steps if name == "denoise" else calls
        return Phase.model_validate(
            {"name": name, "branch": branch, "calls": total, "operations": operations}
        )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count while the block runs; no hook is left behind."""
        denoiser = denoiser_of(self.pipeline)
        self.blocks = _blocks(denoiser)
        encoders = [
            module for name, module in self.pipeline.components.items()
            if name.startswith("text_encoder") and isinstance(module, torch.nn.Module)
        ]  # fmt: skip
        with ExitStack() as stack:
            branch = _Branch(self)
            stack.callback(attach(denoiser, denoiser, branch, "planner_trace"))
            self._follow(stack, denoiser, None)
            for index, module in enumerate(encoders):
                self._follow(stack, module, ("encode", None), counts=index == 0)
            decoder = getattr(getattr(self.pipeline, "vae", None), "decoder", None)
            if decoder is not None:
                self._follow(stack, decoder, ("decode", None))
            stack.enter_context(_Dispatch(self))
            yield

    def _follow(
        self, stack: ExitStack, root: Any, place: Place | None, counts: bool = True
    ) -> None:
        """Hook a component: its root opens a phase, its modules name the operations' group."""
        for path, module in root.named_modules():
            if path == "" and place is not None:
                self._open(stack, root, place, counts)
            elif path and self._is_group(path):
                enter, leave = self._steps_into(path)
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(leave, always_call=True).remove)

    def _open(self, stack: ExitStack, root: Any, place: Place, counts: bool) -> None:
        def enter(*_: Any) -> None:
            self.begin(place, counts)

        def leave(*_: Any) -> None:
            self.place = None

        stack.callback(root.register_forward_pre_hook(enter).remove)
        stack.callback(root.register_forward_hook(leave, always_call=True).remove)

    def _steps_into(self, path: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def enter(*_: Any) -> None:
            self.path.append(path)

        def leave(*_: Any) -> None:
            self.path.pop()

        return enter, leave

    def _in_block(self, path: str) -> bool:
        return ".".join(path.split(".")[:2]) in self.blocks

    def _is_group(self, path: str) -> bool:
        """Tell whether a module names a group: blocks, their children, other top-level parts."""
        parts = path.split(".")
        if self._in_block(path):
            return len(parts) in (2, 3)
        return len(parts) == 1 or (len(parts) == 2 and parts[1].isdigit())

    def begin(self, place: Place, counts: bool = True) -> None:
        """Enter a phase; `counts` is False for a second component of the same call."""
        self.place = place
        self.calls[place] = self.calls.get(place, 0) + int(counts)

    def add(self, function: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Add one dispatched operation to its group."""
        if self.place is None or _is_view(function):
            return
        path = self.path[-1] if self.path else ""
        key = (path, _kind(function), self._in_block(path))
        group = self.sums.setdefault(self.place, {}).setdefault(key, _Sum())
        group.flops += _flops(function, args, kwargs, out)
        group.bytes += _bytes((args, kwargs)) + _bytes(out)
        group.launches += 1
        group.dtype = group.dtype or ("int8" if _is_integer(function) else _dtype(out))


class _Branch(Hook):
    """Opens the denoise phase of the branch that the pipeline names."""

    def __init__(self, counter: _Counter) -> None:
        super().__init__()
        self._counter = counter

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self._counter.begin(("denoise", None if self.branch == SINGLE else self.branch))
        return args, kwargs

    def post_forward(self, module: Any, output: Any) -> Any:
        self._counter.place = None
        return output


class _Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sends every operation that torch dispatches to the counter."""

    def __init__(self, counter: _Counter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counter = counter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._counter.add(func, args, kwargs or {}, out)
        return out


def _blocks(denoiser: Any) -> set[str]:
    return {f"{part.name}.{index}" for part in segments(denoiser) for index in range(len(part[1]))}


def _is_view(function: Any) -> bool:
    returns = function._schema.returns
    return bool(returns) and all(r.alias_info and not r.alias_info.is_write for r in returns)


def _is_integer(function: Any) -> bool:
    return function._schema.name in ("quantized::linear_dynamic", "planner::int8_linear")


def _kind(function: Any) -> Kind:
    name = function._schema.name.partition("::")[2]
    if "scaled_dot_product" in name or name in ("bmm", "baddbmm", "_softmax"):
        return "attention"
    if name in ("mm", "addmm", "linear") or "linear" in name:
        return "linear"
    if "convolution" in name:
        return "convolution"
    return "normalisation" if any(norm in name for norm in _NORMS) else "elementwise"


def _flops(function: Any, args: Any, kwargs: Any, out: Any) -> float:
    if "scaled_dot_product" in function._schema.name:
        batch, heads, queries, width = args[0].shape
        pairs: float = batch * heads * queries * args[1].shape[2]
        return 4.0 * pairs * float(width)
    if _is_integer(function):
        return 2.0 * float(args[0].numel() * out.shape[-1])
    known = flop_registry.get(function._overloadpacket)
    if known is not None:
        return float(known(*args, **kwargs, out_val=out))
    return float(sum(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)))


def _bytes(values: Any) -> float:
    tensors = (leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor))
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def _dtype(out: Any) -> str:
    tensors = (leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))
    return next((str(tensor.dtype).removeprefix("torch.") for tensor in tensors), "")
