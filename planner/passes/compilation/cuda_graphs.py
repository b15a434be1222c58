"""Replay the denoiser's forward as one graph.

What it does: records every kernel of a forward once for each form of its inputs, and then starts
them all with one launch; inputs are copied to where the recording reads, outputs to fresh memory.
When it helps: small or fast denoisers, where the host cannot launch kernels as quickly as the
device runs them: few tokens, batch 1, quantized and compiled.
What it costs: two forwards and a recording for each form; the activations of a forward stay
reserved. On large models 0 to 1 % (FLUX on an L20: 20.73 to 20.70 s).
When not: anything that decides on the host inside the forward, such as caches that skip blocks;
weights that move, such as offload; shapes that change from call to call.
Source: PyTorch's CUDA graphs, by torch.accelerator.Graph; TensorRT-LLM keeps its cache outside the
graph for the same reason.

The recording is made beneath all hooks on the denoiser itself. Hooks inside it would be replayed as
they were at the first step, which is why the plans' rules keep them out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planner.case.noun import Scalar
from planner.case.telemetry import Telemetry
from planner.case.work import Phase, Work
from planner.case.workload import Workload
from planner.errors import UsageError
from planner.hooks.beneath import beneath_hooks, own_forward
from planner.hooks.blocks import denoiser_of
from planner.passes.base import (
    Context,
    Family,
    Fidelity,
    NoSettings,
    Pass,
    Stage,
    Statistics,
    Undo,
)
from planner.passes.needs import on_cuda, one_denoiser

MOST_FORMS = 8
"""How many forms of inputs are recorded, at most; the others run as they are."""

WARM = 2
"""Forwards before a recording, so that libraries have made their choices and workspaces."""

Run = Callable[[], Any]
"""The forward on the recording's own inputs."""


def record(run: Run, device: Any) -> tuple[Any, Callable[[], None]]:
    """Record what a forward launches; returns its outputs and the replay that renews them."""
    import torch

    stream = torch.Stream(device)
    stream.wait_stream(torch.accelerator.current_stream())
    with stream:
        for _ in range(WARM):
            run()
    torch.accelerator.synchronize()
    graph = torch.accelerator.Graph()
    with stream, graph:
        outputs = run()
    torch.accelerator.synchronize()
    return outputs, graph.replay


class Recorder:
    """Stands in for a denoiser's forward: records each form of inputs once, then replays it."""

    def __init__(self, forward: Callable[..., Any], statistics: dict[str, Scalar]) -> None:
        self._forward = forward
        self._statistics = statistics
        self._forms: dict[Any, tuple[list[Any], Any, Callable[[], None]]] = {}
        self._statistics.update(graphs=0, replays=0, eager=0)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward, by replay where its inputs have a form that is or can be recorded."""
        from torch.utils._pytree import tree_flatten

        leaves, shape = tree_flatten((args, kwargs))
        form = _form(leaves, shape)
        if form is None or (form not in self._forms and len(self._forms) >= MOST_FORMS):
            self._count("eager")
            return self._forward(*args, **kwargs)
        if form not in self._forms:
            self._forms[form] = self._recorded(leaves, shape)
            self._count("graphs")
        return self._replayed(form, leaves)

    def forget(self) -> None:
        """Free every recording."""
        self._forms.clear()

    def _recorded(self, leaves: list[Any], shape: Any) -> Any:
        from torch.utils._pytree import tree_unflatten

        own = [leaf.clone() if _is_tensor(leaf) else leaf for leaf in leaves]
        args, kwargs = tree_unflatten(own, shape)
        device = next(leaf.device for leaf in own if _is_tensor(leaf))
        outputs, replay = record(lambda: self._forward(*args, **kwargs), device)
        return own, outputs, replay

    def _replayed(self, form: Any, leaves: list[Any]) -> Any:
        from torch.utils._pytree import tree_map

        own, outputs, replay = self._forms[form]
        for mine, leaf in zip(own, leaves, strict=True):
            if _is_tensor(mine):
                mine.copy_(leaf)
        replay()
        self._count("replays")
        # The next replay, of the other branch perhaps, writes over the recording's outputs.
        return tree_map(lambda leaf: leaf.clone() if _is_tensor(leaf) else leaf, outputs)

    def _count(self, what: str) -> None:
        self._statistics[what] = int(self._statistics[what] or 0) + 1


def _is_tensor(leaf: Any) -> bool:
    import torch

    return isinstance(leaf, torch.Tensor)


def _form(leaves: list[Any], shape: Any) -> Any:
    """Return what a recording holds for: shapes, dtypes and plain values; None if it holds not."""
    import torch

    known: list[tuple[Any, ...]] = []
    for leaf in leaves:
        if _is_tensor(leaf):
            known.append((leaf.shape, leaf.stride(), leaf.dtype, leaf.device))
        elif leaf is None or isinstance(leaf, bool | int | float | str | torch.dtype):
            known.append((type(leaf).__name__, leaf))
        else:
            return None
    devices = {leaf.device.type for leaf in leaves if _is_tensor(leaf)}
    return (str(shape), tuple(known)) if len(devices) == 1 else None


def apply(pipeline: Any, settings: NoSettings, context: Context) -> Undo:
    """Put a recorder in place of the denoiser's forward, beneath all hooks on it.

    Raises `UsageError` where the denoiser is on a CPU, which records nothing.
    """
    denoiser = denoiser_of(pipeline)
    if denoiser.device.type == "cpu":
        raise UsageError(
            "cuda_graphs cannot record a forward on the cpu", value="cpu",
            way_out="leave the pass out, or move the pipeline to a CUDA device",
        )  # fmt: skip
    recorder = Recorder(own_forward(denoiser), context.statistics)
    restore = beneath_hooks(denoiser, recorder)

    def undo() -> None:
        restore()
        recorder.forget()

    return undo


def effect(work: Work, settings: NoSettings, telemetry: Telemetry | None) -> Work:
    """Replay the denoiser's launches as one."""

    def captured(phase: Phase) -> Phase:
        return phase.model_copy(update={"captured": True}) if phase.name == "denoise" else phase

    return work.mapped(captured)


def observe(settings: NoSettings, statistics: Statistics, workload: Workload) -> str | None:
    """Answer a sentence if no forward was replayed."""
    if statistics.get("replays"):
        return None
    return f"cuda_graphs replayed none of {statistics.get('eager', 0)} forwards"


_SOURCE = "PyTorch docs, torch.accelerator.Graph and CUDA graphs: static addresses and shapes"

PASS = Pass(
    name="cuda_graphs",
    family=Family.COMPILATION,
    stage=Stage.COMPILE,
    fidelity=Fidelity.EXACT,
    source=_SOURCE,
    owns=("denoiser.capture",),
    imports=("torch>=2.14",),
    needs=(on_cuda("cuda_graphs", _SOURCE), one_denoiser("cuda_graphs")),
    effect=effect,
    apply=apply,
    observe=observe,
    batch_invariant=True,
)
