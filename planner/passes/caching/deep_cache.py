"""Run the whole U-Net every few steps, and its outermost layers alone in between.

What it does: at every so many steps the whole U-Net runs, and the feature that its deep part hands
to the last layers of the last up block is kept; in between only those layers run, with the layers
of the first down block whose skip connections they read, around what was kept.
When it helps: U-Nets (SDXL, SD 1.5, SD 2.1) at many steps, whose deep features change slowly. A
skipped step computes 0.02 to 0.07 of SDXL's arithmetic and 0.08 to 0.38 of SD 1.5's, by `layers`.
What it costs: one feature map of memory. Nothing is calibrated, nothing compared; latency does not
depend on the prompt.
When not: 8 steps or fewer; long intervals early in the schedule, which move the layout; with
ControlNet or T2I-Adapter, whose residuals belong to blocks that a skipped step leaves out.
Source: DeepCache (Ma et al. 2023, arXiv 2312.00858) with even intervals; its branches, counted from
zero, are `layers` less one.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.case.work import Operation, Phase, Work
from planner.case.workload import Workload
from planner.hooks.blocks import denoiser_of
from planner.hooks.branches import Hook, Order, PerBranch, Tally, attach
from planner.hooks.reuse import long_enough, reused_none
from planner.hooks.unet import Forward, cut, instead
from planner.passes.base import (
    Context,
    Family,
    Fidelity,
    Need,
    Pass,
    Settings,
    Stage,
    Statistics,
    Undo,
    knob,
)


class DeepCacheSettings(Settings):
    """How often the whole U-Net runs, from where on, and what runs in between."""

    interval: int = knob(3, "every how many steps the whole U-Net runs", low=2, high=8, step=1,
                         least=1, most=1000)  # fmt: skip
    first: int = knob(1, "steps at the start that are all computed", low=1, high=10, step=1,
                      least=1, most=1000)  # fmt: skip
    layers: int = knob(
        1, "layers of the last up block that run at every step; at most all of them",
        choices=(1, 2, 3), least=1, most=100,
    )  # fmt: skip


def runs(settings: DeepCacheSettings, step: int) -> bool:
    """Tell whether the whole U-Net runs at a step: in the first ones, then every `interval`-th."""
    return step < settings.first or (step - settings.first + 1) % settings.interval == 0


_ADDED = (
    "down_block_additional_residuals", "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)  # fmt: skip
"""Arguments of a U-Net that add to blocks inside it."""


class _Deep:
    """What a branch keeps of its last full step.

    `feature` is what the cut's feeder returned, `shapes` how the modules that are left out pack
    their results, `form` the shape and type of the latents: another batch is another form.
    """

    def __init__(self) -> None:
        self.form: Any = None
        self.feature: Any = None
        self.shapes: dict[Any, Any] = {}


class _Cache(Hook):
    """Runs a U-Net whole, or its outermost layers around what the branch has kept."""

    def __init__(self, unet: Any, settings: DeepCacheSettings, context: Context) -> None:
        super().__init__()
        self._names = tuple(inspect.signature(type(unet).forward).parameters)[1:]
        self._cut = cut(unet, settings.layers)
        self._settings, self._clock = settings, context.clock
        self._order = Order(context.clock)
        self._kept = PerBranch(_Deep, context.clock)
        self._tally = Tally(context.statistics, context.clock)

    def restart(self) -> None:
        """Forget the last call."""
        self._order.restart()
        self._kept.clear()
        self._tally.restart()

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        forward = self.fn_ref.original_forward
        if not self._clock.running:  # nobody says where a call begins: nothing is safe to reuse
            return forward(*args, **kwargs)
        branch = self._order.branch(self)
        kept, form = self._kept[branch], _form(dict(zip(self._names, args, strict=False)) | kwargs)
        known = form is not None and form == kept.form
        whole = runs(self._settings, self._clock.step) or not known
        self._tally.add(branch, computed=whole)
        kept.form = None  # until this forward has come to its end
        stand_in = self._watched if whole else self._left_out
        with instead({part: stand_in(part, kept) for part in self._cut.out}):
            output = forward(*args, **kwargs)
        kept.form = form
        return output

    def _watched(self, part: Any, kept: _Deep) -> Forward:
        """Return a forward that keeps what a skipped step will need."""
        from torch.utils._pytree import tree_flatten

        inner = part.forward

        def watched(*args: Any, **kwargs: Any) -> Any:
            output = inner(*args, **kwargs)
            leaves, kept.shapes[part] = tree_flatten(output)
            if part is self._cut.feeder:
                kept.feature = leaves[0].clone()  # FreeU scales what a layer is given in place
            return output

        return watched

    def _left_out(self, part: Any, kept: _Deep) -> Forward:
        """Return a forward that computes nothing: what was kept, or what nobody reads."""
        import torch
        from torch.utils._pytree import tree_unflatten

        shape = kept.shapes[part]

        def left_out(*args: Any, **kwargs: Any) -> Any:
            if part is self._cut.feeder:
                result = kept.feature.clone()
            else:
                result = torch.empty_like(args[0] if args else kwargs["hidden_states"])
            return tree_unflatten([result] * shape.num_leaves, shape)

        return left_out


def _form(given: Mapping[str, Any]) -> Any:
    """Return the form of the latents; None where something is added to the blocks inside."""
    if any(given.get(name) is not None for name in _ADDED):
        return None
    sample = given["sample"]
    return sample.shape, sample.dtype, sample.device


def apply(pipeline: Any, settings: DeepCacheSettings, context: Context) -> Undo:
    """Put the cache on the U-Net."""
    unet = denoiser_of(pipeline)
    cache = _Cache(unet, settings, context)
    detach = attach(unet, unet, cache, "planner_deep_cache")
    stop = context.clock.on_reset(cache.restart)

    def undo() -> None:
        stop()
        detach()

    return undo


def effect(work: Work, settings: DeepCacheSettings, telemetry: Telemetry | None) -> Work:
    """Lower the share of what is left out to that of the full steps; hold the feature."""

    def cached(phase: Phase) -> Phase:
        steps = round(phase.calls)
        if phase.name != "denoise" or not steps:
            return phase
        share = sum(runs(settings, step) for step in range(steps)) / steps
        last, layers = _last(phase)
        left = layers - min(layers, settings.layers)

        def less(op: Operation) -> Operation:
            if not op.block or not _is_left_out(op.path, last, left, layers):
                return op
            return op.model_copy(update={"share": op.share * share})

        return phase.mapped(less)

    held = sum(_feature(phase, settings) for phase in work.phases if phase.name == "denoise")
    return work.mapped(cached).model_copy(update={"kept": work.kept + held})


def _last(phase: Phase) -> tuple[int, int]:
    """Return the number of the last up block, and how many layers it has."""
    paths = [op.path.split(".") for op in phase.operations]
    layers = [(int(parts[1]), int(parts[3])) for parts in paths
              if parts[0] == "up_blocks" and parts[2:3] == ["resnets"]]  # fmt: skip
    last, highest = max(layers, default=(0, -1))
    return last, highest + 1


def _is_left_out(path: str, last: int, left: int, layers: int) -> bool:
    """Tell whether a skipped step leaves out an operation of the blocks; the twin of `cut`."""
    stage, number, part, layer, *_ = [*path.split("."), "", "", "", ""]
    if (stage, number) == ("down_blocks", "0"):
        return part == "downsamplers" or (layer != "" and int(layer) >= layers - left - 1)
    if (stage, number) == ("up_blocks", str(last)):
        return layer != "" and int(layer) < left
    return True


def _feature(phase: Phase, settings: DeepCacheSettings) -> float:
    """Return the bytes of the feature: half of what an operation moves that returns as much.

    Behind a layer of the last up block it is as wide as what the output is made of.
    """
    last, layers = _last(phase)
    whole = settings.layers >= layers
    path, kind = (f"up_blocks.{last - 1}.upsamplers.0", "convolution") if whole else (
        "conv_act", "elementwise"
    )  # fmt: skip
    return sum(
        (op.bytes - op.weights) / 2 for op in phase.operations if (op.path, op.kind) == (path, kind)
    )


def observe(settings: DeepCacheSettings, statistics: Statistics, workload: Workload) -> str | None:
    """Answer a sentence if nothing was reused."""
    return reused_none("deep_cache", settings.interval, statistics, "interval")


def _unet(case: Case) -> str | None:
    found = case.model.traits.denoiser_class
    if found == "UNet2DConditionModel":
        return None
    return f"deep_cache needs a UNet2DConditionModel; this pipeline has a {found}"


def _no_additions_to_deep_blocks(case: Case) -> str | None:
    added = [word for word in ("ControlNet", "Adapter") if word in case.model.pipeline]
    if not added:
        return None
    return f"deep_cache needs blocks that nothing is added to; {case.model.pipeline} adds to them"


_SOURCE = "Ma et al. 2023, arXiv 2312.00858"

PASS = Pass(
    name="deep_cache",
    family=Family.CACHING,
    stage=Stage.CACHE,
    fidelity=Fidelity.APPROXIMATE,
    source=_SOURCE,
    settings=DeepCacheSettings,
    owns=("denoiser.step_reuse",),
    needs=(
        Need(_unet, _SOURCE),
        Need(_no_additions_to_deep_blocks,
             "diffusers UNet2DConditionModel.forward: adds to deep blocks' skips"),
        Need(long_enough("deep_cache"), "interactions R14: step caches off at 8 steps and fewer"),
    ),
    effect=effect,
    apply=apply,
    observe=observe,
    seeds=({"interval": 3}, {"interval": 5}, {"interval": 3, "layers": 3}),
    batch_invariant=True,
)
