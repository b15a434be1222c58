"""Reads the catalogue: what planner knows of a model before it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ValidationError

from planner import strict_yaml
from planner.case.noun import Noun, Scalar
from planner.case.workload import Guidance, Workload
from planner.errors import InvalidFile, UsageError, nearest

Split = Literal["tune", "certify"]

_PACKAGE = Path(__file__).parent.parent
_MODELS = Path(__file__).parent / "models"
_M = TypeVar("_M", bound=BaseModel)


class Fact(Noun):
    """A sentence about a model, and where it can be checked."""

    says: str
    source: str


class ReferenceCall(Noun):
    """The arguments of an embedded model's reference call."""

    num_inference_steps: int
    true_cfg_scale: float
    negative_prompt: str
    height: int
    width: int
    max_sequence_length: int


class Entry(Noun):
    """One model of the catalogue; paths are inside the package."""

    id: str
    title: str
    pipeline: str
    folder: str
    licence: str
    call: str
    guidance: Guidance
    batch_size: int
    dtype: Literal["float32", "float16", "bfloat16"]
    prompts: dict[Split, str]
    facts: tuple[Fact, ...]


def known() -> tuple[str, ...]:
    """Return the ids of the catalogued models."""
    return tuple(sorted(file.stem for file in _MODELS.glob("*.yaml")))


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
    return _checked(file, lambda: Entry.model_validate(values))


def shapes() -> Path:
    """Return the folder of the embedded model, for `DiffusionPipeline.from_pretrained`."""
    return folder_of("shapes")


def folder_of(model_id: str) -> Path:
    """Return the folder of a catalogued model's pipeline. Raises `InvalidFile` if it is gone."""
    return _present(_PACKAGE / entry(model_id).folder)


def workload_for(model_id: str) -> Workload | None:
    """Return the reference call of a catalogued model; None for any other.

    `prompts` is left empty: which captions are drawn, at which seeds, is the study's choice.
    """
    if model_id not in known():
        return None
    model = entry(model_id)
    call = read_call(_present(_PACKAGE / model.call))
    return Workload(
        call=call, guidance=model.guidance, batch_size=model.batch_size, dtype=model.dtype
    )


def read_call(file: Path) -> dict[str, Scalar]:
    """Read the arguments of a reference call, as JSON. Raises `InvalidFile`."""
    text = file.read_text(encoding="utf-8")
    return _checked(file, lambda: ReferenceCall.model_validate_json(text)).model_dump()


def prompts_for(model_id: str, split: Split) -> list[str] | None:
    """Return the captions of a split of a catalogued model, in order; None for any other model."""
    if model_id not in known():
        return None
    file = _present(_PACKAGE / entry(model_id).prompts[split])
    return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


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
