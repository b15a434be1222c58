"""Reads a diffusers folder as an entry of the catalogue: classes and configs, weights or not."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, Literal

from planner.catalog import reader
from planner.catalog.entry import Component, Entry, Fact, Shape
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

    What a folder does not say (steps, guidance, text length) is taken from a catalogued model of
    the same pipeline class. Raises `InvalidFile` for a folder that is none, `UsageError` for a
    pipeline class that the catalogue does not know.
    """
    folder = reader.folder_of(model) if model in reader.known() else Path(model).expanduser()
    index = _json(folder / "model_index.json")
    like = reader.entry(model) if model in reader.known() else _like(str(index["_class_name"]))
    components = tuple(
        _component(folder, name, *value)
        for name, value in index.items()
        if isinstance(value, list) and None not in value and _phase(name)
    )
    fact = Fact(says="Read from the folder's configs.", source=str(folder))
    found = {"id": model, "title": model, "repository": str(folder), "components": components,
             "facts": (fact,), "published": (), "distilled": ()}  # fmt: skip
    if like.embedded is not None:
        found |= {"embedded": None, "defaults": _defaults(model), "limits": _limits(model)}
    return like.model_copy(update=found)


def _defaults(model: str) -> Shape:
    """Return the shape of an embedded model's reference call."""
    workload = reader.workload_for(model)
    assert workload is not None
    call = workload.call
    sizes = {ours: call[theirs] for theirs, ours in _SIZES.items() if theirs in call}
    scale = call.get("true_cfg_scale", call.get("guidance_scale"))
    return Shape.model_validate(sizes | {"guidance": scale, "batch": workload.batch_size})


def _limits(model: str) -> Any:
    """Return no limit beyond what the embedded model's text encoder was given."""
    from planner.catalog.entry import Limits

    return Limits(text_tokens=_defaults(model).text_tokens)


def _like(pipeline: str) -> Entry:
    """Return the catalogued model of the same pipeline class whose id comes first."""
    same = [reader.entry(one) for one in reader.known() if reader.entry(one).pipeline == pipeline]
    listed = [one for one in same if one.embedded is None]
    if not listed:
        known = sorted({reader.entry(one).pipeline for one in reader.known()})
        what = f"the catalogue has no model of the class {pipeline}"
        raise UsageError(what, value=pipeline, way_out=f"it knows {', '.join(known)}")
    return listed[0]


def _phase(name: str) -> Literal["encode", "denoise", "decode"] | None:
    return _PHASES.get(name.rstrip("_0123456789"))


def _component(folder: Path, name: str, library: str, cls: str) -> Component:
    """Read one component's config; fields that the class does not take are diffusers' own."""
    config = _json(folder / name / "config.json")
    phase = _phase(name)
    assert phase is not None
    if library == "diffusers":
        fields = inspect.signature(class_of(library, cls, str(folder)).__init__).parameters
        config = {key: value for key, value in config.items() if key in fields}
    else:
        config = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    return Component.model_validate(
        {"name": name, "phase": phase, "library": library, "class": cls, "config": config}
    )


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        way_out = "give a folder that save_pretrained wrote; its weights may be absent"
        raise InvalidFile(f"cannot read {file} ({error})", value=str(file), way_out=way_out) from error
    if not isinstance(found, dict):
        raise InvalidFile(f"{file} holds no object", value=found, way_out="restore the file")
    return found
