"""Runs one component of a pipeline on the meta device and counts it; each size is run once.

What changes only how often a component runs (steps, guidance) or what else runs beside it is no
part of the memo's key, so that plans of many kinds for one size cost one trace.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves

from planner.case.work import Operation, Part
from planner.catalog.entry import Component
from planner.errors import InvalidFile
from planner.prediction.components import build, part_of
from planner.prediction.counting import Counting, Scope, Tally, blocks_of, fixed_tensors
from planner.prediction.encoders import encoder_call
from planner.prediction.fused import on_meta
from planner.prediction.inputs import Asked, builder_for
from planner.prediction.latents import Latent, channels
from planner.prediction.repeats import Repeats

_KEPT = 256


class Stage(NamedTuple):
    """A component, the number format of its model, and who says so: what is counted."""

    component: str
    dtype: str
    where: str

    @property
    def part(self) -> Component:
        """Return the component."""
        return Component.model_validate_json(self.component)

    @property
    def module(self) -> Any:
        """Return the component on the meta device."""
        return build(self.part, self.dtype, self.where)

    @property
    def format(self) -> torch.dtype:
        """Return the number format of the component's activations."""
        found: torch.dtype = getattr(torch, self.part.dtype or self.dtype)
        return found


class Counted(NamedTuple):
    """The operations of one call, and the most bytes of activations alive at once in it.

    `crest` is the peak with the copies that convolutions make.
    """

    operations: tuple[Operation, ...]
    peak: float
    crest: float


def stage_of(part: Component, dtype: str, where: str) -> Stage:
    """Return a component as something to count."""
    return Stage(part.model_dump_json(by_alias=True), dtype, where)


@lru_cache(maxsize=_KEPT)
def weights(stage: Stage) -> Part:
    """Return what the component's weights take."""
    part = stage.part
    return part_of(part.name, part.phase, stage.module)


@lru_cache(maxsize=_KEPT)
def encoded(stage: Stage, text: int, batch: int) -> Counted:
    """Count one encoder on one prompt, or one picture, for each of the batch."""
    module, part = stage.module, stage.part
    call, arguments = encoder_call(module, part, text, batch)
    return _counted(_count(module, arguments, call=call, prefix=part.name))


@lru_cache(maxsize=_KEPT)
def denoised(stage: Stage, latent: Latent, text: int, batch: int) -> Counted:
    """Count one call of a denoiser; where guidance is batched, the batch holds both branches."""
    module, builder = stage.module, builder_for(stage.part.cls)
    arguments = builder.arguments(Asked(module.config, latent, text, batch, stage.format))
    blocks = blocks_of(module)
    return _counted(_count(module, arguments, blocks=blocks, patched=builder.patched))


@lru_cache(maxsize=_KEPT)
def decoded(stage: Stage, latent: Latent, batch: int) -> Counted:
    """Count one decode of the whole batch by a VAE, untiled."""
    vae = stage.module
    video = (latent.frames,) if _is_video(vae) else ()
    size = (batch, channels(vae), *video, latent.height, latent.width)
    arguments = {"z": torch.empty(size, dtype=stage.format, device="meta")}
    if vae.config.get("timestep_conditioning"):
        arguments["temb"] = torch.empty(batch, dtype=stage.format, device="meta")
    patched = ("causal_mask",) if stage.part.cls == "AutoencoderKLHunyuanVideo15" else ()
    return _counted(_count(vae, arguments, call=vae.decode, repeats=False, patched=patched))


@lru_cache(maxsize=_KEPT)
def first_frame(stage: Stage, frames: int, height: int, width: int, batch: int) -> Counted:
    """Count a VAE's encoding of a given first frame, which is followed by empty ones."""
    vae, size = stage.module, (batch, 3, frames, height, width)
    pixels = {"x": torch.empty(size, dtype=stage.format, device="meta")}
    return _counted(_count(vae, pixels, call=vae.encode, prefix=stage.part.name, repeats=False))


def _count(
    module: Any, arguments: dict[str, Any], *, call: Any = None, prefix: str = "",
    blocks: frozenset[str] = frozenset(), patched: tuple[str, ...] = (), repeats: bool = True,
) -> Tally:  # fmt: skip
    """Run a module, or one of its methods, on the meta device and count what it does.

    `repeats` False runs every block, where blocks keep state from call to call as in a VAE.
    """
    scope, tally = Scope(prefix), Tally()
    counting = Counting(scope, fixed_tensors(module))
    for tensor in tree_leaves(arguments):
        if isinstance(tensor, torch.Tensor):
            counting.lifetimes.see(tensor)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        scope.follow(stack, module, blocks, prefix)
        if repeats:
            Repeats(counting).watch(stack, module, prefix)
        stack.enter_context(on_meta(patched))
        stack.enter_context(counting)
        counting.begin(tally)
        _run(call or module, arguments, type(module).__name__)
        counting.end()
    return tally


def _run(call: Any, arguments: dict[str, Any], cls: str) -> None:
    """Run on the meta device, where a failure means sizes that do not fit together."""
    try:
        call(**arguments)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        what = f"{cls} cannot be run with its config at this size ({first})"
        way_out = "make the sizes in the configs of denoiser, encoders and VAE fit together"
        raise InvalidFile(what, value=cls, way_out=way_out) from error


def _counted(tally: Tally) -> Counted:
    return Counted(tally.operations(), tally.peak, tally.crest)


def _is_video(vae: Any) -> bool:
    return any(isinstance(module, torch.nn.Conv3d) for module in vae.modules())
