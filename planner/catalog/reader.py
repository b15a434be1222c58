"""Reads the catalogue: what planner knows of a model before it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from planner import strict_yaml
from planner.case.noun import Noun, Scalar
from planner.case.workload import Workload
from planner.catalog.entry import Component, Entry, SharedPart, Split
from planner.errors import InvalidFile, UsageError, nearest

_PACKAGE = Path(__file__).parent.parent
_MODELS = Path(__file__).parent / "models"
_PARTS = Path(__file__).parent / "parts"
_M = TypeVar("_M", bound=BaseModel)


class ReferenceCall(Noun):
    """The arguments of an embedded model's reference call."""

    num_inference_steps: int
    true_cfg_scale: float
    negative_prompt: str
    height: int
    width: int
    max_sequence_length: int


def known() -> tuple[str, ...]:
    """Return the ids of the catalogued models."""
    return tuple(sorted(file.stem for file in _MODELS.glob("*.yaml")))


def is_embedded(model_id: str) -> bool:
    """Tell whether a model's weights are in the package."""
    return model_id in known() and entry(model_id).embedded is not None


@cache
def entry(model_id: str) -> Entry:
    """Return what the catalogue says of a model.

    Raises `UsageError` for an unknown id and `InvalidFile` for an entry that breaks its form.
    """
    if model_id not in known():
        what = f"the catalogue has no model {model_id!r}"
        raise UsageError(what, value=model_id, way_out=nearest(model_id, known()))
    return read_entry(_MODELS / f"{model_id}.yaml")


def read_entry(file: Path) -> Entry:
    """Read one catalogue file; unknown and missing keys are refused with their names."""
    values = strict_yaml.read(file, what="a catalogue entry")
    found = _checked(file, lambda: Entry.model_validate(values))
    return found.model_copy(update={"components": tuple(map(_filled, found.components))})


@cache
def published_as(name: str) -> str | None:
    """Return the id of the model that published measurements call so; None where none is."""
    asked = name.lower()
    for model_id in known():
        if asked == model_id or asked in (one.lower() for one in entry(model_id).published):
            return model_id
    return None


def shapes() -> Path:
    """Return the folder of the embedded model, for `DiffusionPipeline.from_pretrained`."""
    return folder_of("shapes")


def folder_of(model_id: str) -> Path:
    """Return the folder of an embedded model's pipeline.

    Raises `InvalidFile` if it is gone and `UsageError` for a model that is not in the package.
    """
    found = entry(model_id)
    if found.embedded is None:
        what = f"{model_id} is catalogued, but its weights are not in the package"
        way_out = f"name its Hub id {found.repository}, or a local folder"
        raise UsageError(what, value=model_id, way_out=way_out)
    return _present(_PACKAGE / found.embedded.folder)


def workload_for(model_id: str) -> Workload | None:
    """Return the reference call of a catalogued model; None for any other.

    `prompts` is left empty: which captions are drawn, at which seeds, is the study's choice.
    """
    if model_id not in known():
        return None
    model = entry(model_id)
    if model.embedded is None:
        return model.workload
    call = read_call(_present(_PACKAGE / model.embedded.call))
    size = model.embedded.batch_size
    return Workload(call=call, guidance=model.guidance, batch_size=size, dtype=model.dtype)


def read_call(file: Path) -> dict[str, Scalar]:
    """Read the arguments of a reference call, as JSON. Raises `InvalidFile`."""
    text = file.read_text(encoding="utf-8")
    return _checked(file, lambda: ReferenceCall.model_validate_json(text)).model_dump()


def prompts_for(model_id: str, split: Split) -> list[str] | None:
    """Return the captions of a split of an embedded model, in order; None for any other model."""
    found = entry(model_id).embedded if model_id in known() else None
    if found is None:
        return None
    file = _present(_PACKAGE / found.prompts[split])
    return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


@cache
def _part(name: str) -> SharedPart:
    """Return a part that several models share."""
    parts = sorted(file.stem for file in _PARTS.glob("*.yaml"))
    if name not in parts:
        what = f"the catalogue has no part {name!r}"
        raise UsageError(what, value=name, way_out=nearest(name, parts))
    file = _PARTS / f"{name}.yaml"
    values = strict_yaml.read(file, what="a part of the catalogue")
    return _checked(file, lambda: SharedPart.model_validate(values))


def _filled(component: Component) -> Component:
    """Return a component with the class and config of the shared part that it uses."""
    if not component.uses:
        return component
    part = _part(component.uses)
    filled = {"library": part.library, "cls": part.cls, "config": part.config | component.config}
    return component.model_copy(update=filled)


def _checked(file: Path, build: Callable[[], _M]) -> _M:
    try:
        return build()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        what = f"{file.name}: {where} is wrong ({first['msg'].lower()})"
        way_out = "restore the file from the release it came with"
        raise InvalidFile(what, value=first["input"], way_out=way_out) from error


def _present(path: Path) -> Path:
    if not path.exists():
        way_out = "install planner again, or train the model with planner.zoo"
        raise InvalidFile(f"{path} is not there", value=str(path), way_out=way_out)
    return path
