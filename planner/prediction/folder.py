"""Reads a diffusers folder as an entry of the catalogue: classes and configs, weights or not."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, Literal

from planner.case.noun import Scalar
from planner.case.workload import Workload
from planner.catalog import reader
from planner.catalog.entry import Component, Entry, Fact, Limits, Shape
from planner.errors import InvalidFile, UsageError
from planner.prediction.components import class_of

_PHASES: dict[str, Literal["encode", "denoise", "decode"]] = {
    "transformer": "denoise", "unet": "denoise", "vae": "decode", "text_encoder": "encode",
    "image_encoder": "encode",
}  # fmt: skip
_SIZES = {"num_inference_steps": "steps", "max_sequence_length": "text_tokens",
          "height": "height", "width": "width", "num_frames": "frames"}  # fmt: skip


def entry_of_folder(model: str) -> Entry:
    """Return an entry for a folder that `save_pretrained` wrote, or for an embedded model.

    What a folder does not say (steps, guidance, text length) is taken from the catalogued model of
    the same pipeline class, or else denoiser class, whose configs are nearest. Raises `InvalidFile`
    for a folder that is none, `UsageError` where the catalogue knows neither class.
    """
    folder = reader.folder_of(model) if model in reader.known() else Path(model).expanduser()
    index = _json(folder / "model_index.json")
    components = tuple(
        _component(folder, name, *value)
        for name, value in index.items()
        if isinstance(value, list) and None not in value and _phase(name)
    )
    fact = Fact(says="Read from the folder's configs.", source=str(folder))
    found: dict[str, Any] = {
        "id": model, "title": model, "repository": str(folder), "components": components,
        "facts": (fact,), "published": (), "distilled": (),
    }  # fmt: skip
    if model in reader.known():
        shape = _reference(model)
        limits = Limits(text_tokens=shape.text_tokens)
        found |= {"embedded": None, "defaults": shape, "limits": limits}
        return reader.entry(model).model_copy(update=found)
    like = _like(str(index.get("_class_name")), components)
    if sum(part.phase == "denoise" for part in components) < 2:
        found["experts"] = None
    return like.model_copy(update=found)


def _reference(model: str) -> Shape:
    """Return the shape of an embedded model's reference call."""
    workload = reader.workload_for(model)
    assert workload is not None
    return Shape.model_validate(sizes_of(workload))


def sizes_of(workload: Workload) -> dict[str, Scalar]:
    """Return the sizes of a call by the names of a `Shape`; those that it does not say are out."""
    call = workload.call
    sizes = {ours: call[theirs] for theirs, ours in _SIZES.items() if theirs in call}
    scale = call.get("true_cfg_scale", call.get("guidance_scale"))
    return sizes | {"batch": workload.images} | ({} if scale is None else {"guidance": scale})


def _like(pipeline: str, components: tuple[Component, ...]) -> Entry:
    """Return the catalogued model of that pipeline or denoiser class whose configs are nearest."""
    entries = [one for one in map(reader.entry, reader.known()) if one.embedded is None]
    denoisers = {part.cls for part in components if part.phase == "denoise"}
    same = [one for one in entries if one.pipeline == pipeline] or [
        one for one in entries if denoisers & {part.cls for part in one.components}
    ]
    if not same:
        listed = sorted({one.pipeline for one in entries})
        what = f"the catalogue has no model of the class {pipeline}, nor one with its denoiser"
        raise UsageError(what, value=pipeline, way_out=f"it knows {', '.join(listed)}")
    configs = {part.name: part.config for part in components}

    def fits(entry: Entry) -> int:
        agree = (
            1 if configs.get(part.name, {}).get(key) == value else -1
            for part in entry.components for key, value in part.config.items()
        )  # fmt: skip
        return sum(agree)

    return max(same, key=fits)


def _phase(name: str) -> Literal["encode", "denoise", "decode"] | None:
    return _PHASES.get(name.rstrip("_0123456789"))


def _component(folder: Path, name: str, library: str, cls: str) -> Component:
    """Read one component's config; fields that its class does not take are left out."""
    if library not in ("diffusers", "transformers"):
        what = f"{folder}: {name} comes from {library}, whose code planner does not run"
        raise InvalidFile(what, value=library, way_out="use classes of diffusers or transformers")
    config = _json(folder / name / "config.json")
    if library == "diffusers":
        fields = inspect.signature(class_of(library, cls, str(folder)).__init__).parameters
        config = {key: value for key, value in config.items() if key in fields}
    formats = ("dtype", "torch_dtype")
    config = {key: value for key, value in config.items() if key not in formats}
    # CLIP's tokenizers fill up to the table of positions, whatever text length is asked for
    tokens = config.get("max_position_embeddings") if cls.startswith("CLIPText") else None
    return Component.model_validate({
        "name": name, "phase": _phase(name), "library": library, "class": cls, "config": config,
        "tokens": tokens,
    })  # fmt: skip


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        way_out = "give a folder that save_pretrained wrote; its weights may be absent"
        what = f"cannot read {file} ({error})"
        raise InvalidFile(what, value=str(file), way_out=way_out) from error
    if not isinstance(found, dict):
        raise InvalidFile(f"{file} holds no object", value=found, way_out="restore the file")
    return found
