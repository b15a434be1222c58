"""The exact work of a model that is not here: its components run on the meta device.

Counted are the text encoders on their prompts, one denoiser call a branch (for all its steps), and
one decode by the VAE, all untiled. Left out: schedulers, tokenizers and image processors.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from planner.case.noun import Scalar
from planner.case.work import Phase, Work
from planner.catalog.entry import Dtype, Entry, Shape
from planner.catalog.reader import entry as catalogued
from planner.catalog.reader import known
from planner.errors import UsageError, nearest
from planner.prediction import stages
from planner.prediction.folder import entry_of_folder
from planner.prediction.inputs import builder_for
from planner.prediction.latents import Latent, latent_of, rounded
from planner.prediction.stages import Counted, Stage, stage_of


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


def in_format(entry: Entry, dtype: str | None) -> Entry:
    """Return the entry in another number format; None leaves it its own.

    Raises `UsageError` for an unknown format.
    """
    if dtype is None:
        return entry
    if dtype not in get_args(Dtype):
        raise UsageError(f"no number format is called {dtype!r}", value=dtype,
                         way_out=nearest(dtype, get_args(Dtype)))  # fmt: skip
    return entry.model_copy(update={"dtype": dtype})


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
        what = f"{first['loc'][0]} cannot be {first['input']!r} ({first['msg'].lower()})"
        way_out = f"a shape has {', '.join(Shape.model_fields)}"
        raise UsageError(what, value=first["input"], way_out=way_out) from error


def work_of(model: str | Entry, dtype: str | None = None, **overrides: Scalar) -> Work:
    """Return the work of one pipeline call of a catalogued model, or of a diffusers folder.

    `overrides` are height, width, frames, steps, guidance, text_tokens and batch; `dtype` is the
    number format of weights and activations. Raises `UsageError` for a size that the model
    refuses, naming the nearest, and `InvalidFile` for a config that cannot be built.
    """
    entry = in_format(entry_for(model) if isinstance(model, str) else model, dtype)
    shape = shape_of(entry, **overrides)
    vae = _staged(entry, "decode")[0]
    latent = latent_of(vae.module, _patch(entry), shape, entry.limits, entry.title)
    decoded = stages.decoded(vae, latent, shape.batch)
    return Work(
        phases=(
            *_encode(entry, shape), *_denoise(entry, latent, shape),
            _phase("decode", None, 1, decoded),
        ),
        parts=tuple(stages.weights(stage) for stage in _staged(entry)),
        height=shape.height, width=shape.width, batch=shape.batch,
    )  # fmt: skip


def rounded_shape(entry: Entry, shape: Shape) -> Shape:
    """Return the shape that the pipeline makes of one: sides and frames rounded down."""
    return rounded(_staged(entry, "decode")[0].module, _patch(entry), shape)


def branches_of(entry: Entry, shape: Shape) -> int:
    """Return how many guidance branches a step computes, in one forward or in two."""
    guided = entry.guidance in ("batched", "sequential") and shape.guidance > 1
    return 2 if guided else 1


def _staged(entry: Entry, phase: str | None = None) -> list[Stage]:
    """Return the entry's components, or those of a phase, as things to count.

    Raises `UsageError` for an entry without any of that phase.
    """
    found = [
        stage_of(part, entry.dtype, entry.id)
        for part in entry.components if phase in (None, part.phase)
    ]  # fmt: skip
    if not found and phase != "encode":
        what = f"{entry.id} has no component for the phase {phase}"
        raise UsageError(what, value=entry.id, way_out="use a pipeline with a denoiser and a VAE")
    return found


def _patch(entry: Entry) -> int:
    return builder_for(_staged(entry, "denoise")[0].part.cls).patch


def _encode(entry: Entry, shape: Shape) -> list[Phase]:
    """Return what encodes each prompt, and apart from it what encodes a first frame."""
    texts: list[Counted] = []
    pictures: list[Counted] = []
    for stage in _staged(entry, "encode"):
        counted = stages.encoded(stage, shape.text_tokens, shape.batch)
        (pictures if stage.part.name.startswith("image") else texts).append(counted)
    if entry.image_conditioned:
        vae, size = _staged(entry, "decode")[0], (shape.frames, shape.height, shape.width)
        pictures.append(stages.first_frame(vae, *size, shape.batch))
    phases = [_phase("encode", None, branches_of(entry, shape), *texts)] if texts else []
    return phases + ([_phase("encode", None, 1, *pictures)] if pictures else [])


def _denoise(entry: Entry, latent: Latent, shape: Shape) -> list[Phase]:
    """Return one call of each expert; its branches compute the same, one after the other."""
    denoisers, count = _staged(entry, "denoise"), branches_of(entry, shape)
    batched = count == 2 and entry.guidance == "batched"
    branches: tuple[str | None, ...] = ("cond", "uncond") if count == 2 and not batched else (None,)
    batch = shape.batch * (2 if batched else 1)
    phases: list[Phase] = []
    for stage, calls in zip(denoisers, _calls(entry, len(denoisers), shape.steps), strict=True):
        counted = stages.denoised(stage, latent, shape.text_tokens, batch)
        phases += [_phase("denoise", branch, calls, counted) for branch in branches]
    return phases


def _calls(entry: Entry, denoisers: int, steps: int) -> tuple[int, ...]:
    """Return how many of the steps each denoiser runs."""
    if entry.experts is None:
        return (steps,) * denoisers
    first = entry.experts.first(steps)
    return (first, steps - first)


def _phase(name: str, branch: str | None, calls: int, *counted: Counted) -> Phase:
    operations = tuple(op for one in counted for op in one.operations)
    peak, crest = max(one.peak for one in counted), max(one.crest for one in counted)
    return Phase.model_validate({
        "name": name, "branch": branch, "calls": calls, "operations": operations,
        "peak": peak, "copies": crest / peak if peak else 1.0,
    })  # fmt: skip
