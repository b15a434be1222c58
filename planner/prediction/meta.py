"""The exact work of a model that is not here: its components run on the meta device.

Counted are the text encoders on their prompts, one denoiser call a branch (for all its steps), and
one decode by the VAE, all untiled. Left out: schedulers, tokenizers and image processors.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from planner.case.noun import Scalar
from planner.case.work import Phase, Work
from planner.catalog.entry import Component, Entry, Shape
from planner.catalog.reader import entry as catalogued
from planner.catalog.reader import known
from planner.errors import UsageError, nearest
from planner.prediction.components import build, part_of
from planner.prediction.counting import Counting, Scope, Tally, blocks_of, fixed_tensors
from planner.prediction.encoders import encoder_call
from planner.prediction.folder import entry_of_folder
from planner.prediction.fused import on_meta
from planner.prediction.inputs import Asked, builder_for
from planner.prediction.latents import Latent, channels, latent_of
from planner.prediction.repeats import Repeats

_KEPT = 64


def entry_for(model: str) -> Entry:
    """Return the catalogue's entry, or one read from a diffusers folder.

    Raises `UsageError` for a name that is neither, and `InvalidFile` for a broken folder.
    """
    if model in known():
        found = catalogued(model)
        return found if found.embedded is None else entry_of_folder(model)
    if Path(model).expanduser().is_dir():
        return entry_of_folder(model)
    way_out = f"{nearest(model, known())} A diffusers folder does too"
    raise UsageError(f"no model is called {model!r}", value=model, way_out=way_out)


def shape_of(entry: Entry, **overrides: Scalar) -> Shape:
    """Return the entry's default shape with overrides; those that are None change nothing.

    Raises `UsageError` for a value that no shape can have.
    """
    assert entry.defaults is not None
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Shape.model_validate(entry.defaults.model_dump() | given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        what = f"{name} cannot be {first['input']!r} ({first['msg'].lower()})"
        known_names = ", ".join(Shape.model_fields)
        raise UsageError(what, value=first["input"], way_out=f"a shape has {known_names}") from error


def work_of(model: str | Entry, dtype: str | None = None, **overrides: Scalar) -> Work:
    """Return the work of one pipeline call of a catalogued model, or of a diffusers folder.

    `overrides` are height, width, frames, steps, guidance, text_tokens and batch; `dtype` is the
    number format of weights and activations. Raises `UsageError` for a size that the model
    refuses, naming the nearest, and `InvalidFile` for a config that cannot be built.
    """
    found = entry_for(model) if isinstance(model, str) else model
    shape = shape_of(found, **overrides)
    if dtype is not None:
        found = found.model_copy(update={"dtype": dtype})
    return _work(found.model_dump_json(by_alias=True), shape)


def branches_of(entry: Entry, shape: Shape) -> int:
    """Return how many guidance branches a step computes, in one forward or in two."""
    guided = entry.guidance in ("batched", "sequential") and shape.guidance > 1
    return 2 if guided else 1


@lru_cache(maxsize=_KEPT)
def _work(entry_json: str, shape: Shape) -> Work:
    entry = Entry.model_validate_json(entry_json)
    modules = {part.name: build(part, entry.dtype, entry.id) for part in entry.components}
    denoise = [part for part in entry.components if part.phase == "denoise"]
    vae = next(modules[part.name] for part in entry.components if part.phase == "decode")
    patch = builder_for(denoise[0].cls).patch
    latent = latent_of(vae, patch, shape, entry.limits, entry.title)
    return Work(
        phases=(
            *_encode(entry, modules, shape),
            *_denoise(entry, denoise, modules, latent, shape),
            _decode(entry, vae, latent, shape),
        ),
        parts=tuple(part_of(one.name, one.phase, modules[one.name]) for one in entry.components),
    )


def _count(
    module: Any, arguments: dict[str, Any], *, call: Any = None, blocks: frozenset[str] = frozenset(),
    prefix: str = "", patched: tuple[str, ...] = (), repeats: bool = True,
) -> Tally:  # fmt: skip
    """Run a module, or one of its methods, on the meta device and count what it does.

    `repeats` False runs every block, where blocks keep state from call to call as in a VAE.
    """
    scope, tally = Scope(), Tally()
    counting = Counting(scope, fixed_tensors(module))
    for tensor in torch.utils._pytree.tree_leaves(arguments):
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
        (call or module)(**arguments)
        counting.end()
    return tally


def _encode(entry: Entry, modules: dict[str, Any], shape: Shape) -> list[Phase]:
    """Count every encoder of text on one prompt, and what encodes a first frame, apart."""
    texts: list[Tally] = []
    images: list[Tally] = []
    for part in entry.components:
        if part.phase == "encode":
            call, arguments = encoder_call(modules[part.name], part, shape)
            tally = _count(modules[part.name], arguments, call=call, prefix=part.name)
            (images if "pixel_values" in arguments else texts).append(tally)
    if entry.image_conditioned:
        images.append(_first_frame(entry, modules, shape))
    calls = branches_of(entry, shape)
    phases = [_phase("encode", None, calls, *texts)] if texts else []
    return phases + ([_phase("encode", None, 1, *images)] if images else [])


def _first_frame(entry: Entry, modules: dict[str, Any], shape: Shape) -> Tally:
    """Count the VAE's encoding of the first frame, which is followed by empty ones."""
    part = next(part for part in entry.components if part.phase == "decode")
    dtype = getattr(torch, part.dtype or entry.dtype)
    video = (shape.batch, 3, shape.frames, shape.height, shape.width)
    vae = modules[part.name]
    pixels = {"x": torch.empty(video, dtype=dtype, device="meta")}
    return _count(vae, pixels, call=vae.encode, prefix=part.name, repeats=False)


def _denoise(
    entry: Entry, parts: list[Component], modules: dict[str, Any], latent: Latent, shape: Shape
) -> list[Phase]:
    """Count one call of each expert; its branches compute the same, one after the other."""
    count = branches_of(entry, shape)
    batched = count == 2 and entry.guidance == "batched"
    branches: tuple[str | None, ...] = ("cond", "uncond") if count == 2 and not batched else (None,)
    phases: list[Phase] = []
    for part, calls in zip(parts, _calls(entry, parts, shape.steps), strict=True):
        module, builder = modules[part.name], builder_for(part.cls)
        dtype = getattr(torch, part.dtype or entry.dtype)
        batch = shape.batch * (2 if batched else 1)
        asked = Asked(module.config, latent, shape.text_tokens, batch, dtype)
        tally = _count(
            module, builder.arguments(asked), blocks=blocks_of(module), patched=builder.patched
        )
        phases += [_phase("denoise", branch, calls, tally) for branch in branches]
    return phases


def _calls(entry: Entry, parts: list[Component], steps: int) -> tuple[int, ...]:
    """Return how many of the steps each denoiser runs."""
    if entry.experts is None:
        return (steps,) * len(parts)
    first = entry.experts.first(steps)
    return (first, steps - first)


def _decode(entry: Entry, vae: Any, latent: Latent, shape: Shape) -> Phase:
    """Count one decode of the whole batch, untiled."""
    part = next(part for part in entry.components if part.phase == "decode")
    dtype = getattr(torch, part.dtype or entry.dtype)
    video = (latent.frames,) if _is_video(vae) else ()
    size = (shape.batch, channels(vae), *video, latent.height, latent.width)
    arguments = {"z": torch.empty(size, dtype=dtype, device="meta")}
    if vae.config.get("timestep_conditioning"):
        arguments["temb"] = torch.empty(shape.batch, dtype=dtype, device="meta")
    patched = ("causal_mask",) if type(vae).__name__ == "AutoencoderKLHunyuanVideo15" else ()
    tally = _count(vae, arguments, call=vae.decode, repeats=False, patched=patched)
    return _phase("decode", None, 1, tally)


def _is_video(vae: Any) -> bool:
    return any(isinstance(module, torch.nn.Conv3d) for module in vae.modules())


def _phase(name: str, branch: str | None, calls: int, *tallies: Tally) -> Phase:
    operations = tuple(op for tally in tallies for op in tally.operations())
    return Phase.model_validate({
        "name": name, "branch": branch, "calls": calls, "operations": operations,
        "peak": max(tally.peak for tally in tallies),
    })  # fmt: skip
