"""Watches reference runs and keeps how every tensor that caches look at moves over the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from planner.case.telemetry import OUTPUT, RESIDUAL, Recorded, Series, Telemetry, group_residual
from planner.errors import TrialFailed, UsageError
from planner.hooks.blocks import Added, Stack, denoiser_of, segments
from planner.hooks.branches import Hook, attach
from planner.hooks.clock import StepClock
from planner.hooks.groups import groups
from planner.hooks.streams import Form
from planner.hooks.whole import Run, Whole, latents_of, tensors_of

_VALUES = 2**17
"""Values of a tensor that are looked at, evenly spaced: all steps of a video would not fit."""

_PRODUCTS = (RESIDUAL, OUTPUT)
"""What skipped steps are forecast from: their inner products tell how far off a forecast is."""


class Forward(NamedTuple):
    """One forward of the denoiser, as a probe sees it.

    `block` is the first block of the stack with the arguments it was called with, and `first`
    what it added to the image tokens; None where the denoiser has no stack that can be watched.
    """

    args: Any
    kwargs: Any
    block: Any
    block_args: Any
    block_kwargs: Any
    first: Any
    clock: StepClock
    denoiser: Any


Probe = Callable[[Forward], Any]
"""Returns the tensor that a cache looks at in this forward, tokens × width in its last two; None
where this forward does not show it."""


class Recorder:
    """Records every pipeline call inside its `with` block, all branches, all steps."""

    def __init__(self, pipeline: Any, clock: StepClock, probes: Mapping[str, Probe]) -> None:
        self._denoiser, self._clock, self._probes = denoiser_of(pipeline), clock, dict(probes)
        self._running: dict[str, dict[str, dict[int, Any]]] = {}
        self._places: dict[int, float] = {}
        self._runs: list[Recorded] = []
        self._first: list[Any] = [None, None]
        self._seen: tuple[Any, ...] = (None, None, None)
        self._added: dict[str, Any] = {}
        self._watches_blocks = False

    def __enter__(self) -> Recorder:
        with ExitStack() as stack:
            stack.callback(self._clock.on_reset(self._end_call))
            try:
                first = segments(self._denoiser)[0].blocks[0]
                watched = Stack(self._denoiser, self, self._clock, "planner_record",
                                groups(self._denoiser))  # fmt: skip
            except (UsageError, ValueError):  # no blocks, or none that diffusers has registered
                first = None
            else:
                stack.callback(watched.detach)
                self._watches_blocks = True
            if first is not None:
                stack.callback(attach(self._denoiser, first, _First(self._first), "planner_first"))
            stack.callback(Whole(self._denoiser, self, self._clock, "planner_record").detach)
            self._undo = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def reuse(self, branch: str, head: Any, args: Any, kwargs: Any) -> None:
        """Note what the first block is called with; never reuse anything."""
        self._seen = (head, args, kwargs)

    def computed(self, branch: str, added: Added) -> None:
        """Note what the stack added to the image tokens, and what each group of it did."""
        images = [one[0] for one in added if one is not None]
        self._added = {group_residual(index): image for index, image in enumerate(images)}
        self._added[RESIDUAL] = _total(images)

    def around(self, branch: str, run: Run, args: Any, kwargs: Any) -> Any:
        """Run the denoiser, and keep what probes see, its latents, output and residual.

        A forward that a pass beneath answers, so that no block runs, is none.
        """
        self._seen, self._added, self._first[:] = (None, None, None), {}, [None, None]
        output = run(*args, **kwargs)
        ran = self._seen[0] is not None or not self._watches_blocks
        if self._clock.running and ran:
            self._keep(branch, args, kwargs, output)
        return output

    def _keep(self, branch: str, args: Any, kwargs: Any, output: Any) -> None:
        before, after = self._first
        first = None if after is None else after - before
        block, block_args, block_kwargs = self._seen
        forward = Forward(args, kwargs, block, block_args, block_kwargs, first, self._clock,
                          self._denoiser)  # fmt: skip
        found = {name: probe(forward) for name, probe in self._probes.items()}
        found |= {"latents": latents_of(args, kwargs), OUTPUT: output, **self._added}
        kept = self._running.setdefault(branch, {})
        for name, tensor in found.items():
            if tensor is not None:
                kept.setdefault(name, {})[self._clock.step] = _sampled(tensor)
        self._places[self._clock.step] = self._clock.place

    def _end_call(self) -> None:
        running, self._running = self._running, {}
        run = {}
        for branch, tensors in running.items():
            steps = sorted(tensors[OUTPUT])
            if steps == list(range(len(self._places))):  # a branch that ran throughout
                whole = {name: seen for name, seen in tensors.items() if sorted(seen) == steps}
                run[branch] = {name: _series(seen, name.startswith(_PRODUCTS))
                               for name, seen in whole.items()}  # fmt: skip
        if run:
            self._runs.append(run)

    def telemetry(self) -> Telemetry:
        """Return what was recorded. Raises `TrialFailed` where no call had two steps."""
        if not self._runs or len(self._places) < 2:
            steps = len(self._places)
            raise TrialFailed(f"the reference run showed {steps} steps", stage="calibrate",
                              value=steps, way_out="record a call of at least 2 steps")  # fmt: skip
        places = tuple(self._places[step] for step in sorted(self._places))
        return Telemetry(places=places, runs=tuple(self._runs))


class _First(Hook):
    """Keeps the image stream before and after the first block."""

    def __init__(self, kept: list[Any]) -> None:
        super().__init__()
        self._kept = kept

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self._kept[0] = Form(module).inputs(args, kwargs)[0]
        return args, kwargs

    def post_forward(self, module: Any, output: Any) -> Any:
        self._kept[1] = Form(module).unpack(output)[0]
        return output


def _total(images: Sequence[Any]) -> Any:
    """Return what the whole stack added to the image tokens, or its last list alone did."""
    total = images[0]
    for image in images[1:]:
        total = total + image if total.shape == image.shape else image
    return total


def _sampled(value: Any) -> Any:
    """Return some rows of a tensor (or of a nest of them) on the CPU: rows × width."""
    import torch

    rows = []
    for tensor in tensors_of(value):
        width = tensor.shape[-1]
        flat = tensor.detach().reshape(-1, width)
        every = max(1, math.ceil(flat.shape[0] * width / _VALUES))
        rows.append(flat[::every].float().cpu())
    return torch.cat(rows) if len({row.shape[1] for row in rows}) == 1 else rows[0]


def _series(seen: Mapping[int, Any], products: bool) -> Series:
    import torch

    ordered = [seen[step] for step in sorted(seen)]
    flat = torch.stack(ordered).flatten(1)
    apart = torch.cdist(flat, flat, p=1.0) / flat.shape[1]
    inner = (flat.double() @ flat.double().T) / flat.shape[1] if products else None
    return Series(
        sizes=_short(flat.abs().mean(1)),
        apart=tuple(_short(apart[step, :step]) for step in range(len(ordered))),
        products=() if inner is None else tuple(
            _short(inner[step, : step + 1], 13) for step in range(len(ordered))),
        ratios=tuple(map(magnitude_ratio, ordered[1:], ordered[:-1])),
    )  # fmt: skip


def magnitude_ratio(now: Any, before: Any) -> float:
    """Return the mean over tokens of |now| / |before| (Euclidean norms), at most a million."""
    ratio = now.norm(dim=-1) / before.norm(dim=-1)
    return float(f"{min(float(ratio.nan_to_num(1e6, 1e6, 1e6).mean()), 1e6):.6g}")


def _short(values: Any, digits: int = 7) -> tuple[float, ...]:
    """Return finite numbers of so many digits; what is not finite becomes very large.

    Products need more of them: a forecast's error is a small difference of large ones.
    """
    finite = values.double().nan_to_num(1e30, 1e30, -1e30).tolist()
    return tuple(float(f"{one:.{digits}g}") for one in finite)
