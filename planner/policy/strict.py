"""Turns plain data into a noun without coercion, and says exactly what is wrong with it."""

from __future__ import annotations

import json
from reprlib import repr as short
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from planner.case.noun import Noun
from planner.errors import InvalidFile, nearest

N = TypeVar("N", bound=Noun)

RESTORE = "restore the file from where it came, or tune again"


def parsed(kind: type[N], data: Any, *, where: str) -> N:
    """Validate plain JSON data, read from the file `where`, as a noun.

    Nothing is coerced: "1" is no number and 1 no boolean. Raises `InvalidFile` that names the
    key, its value and what is allowed there; an unknown key comes with the nearest known one.
    """
    try:
        return kind.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
    first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
    place = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        way_out = nearest(str(first["loc"][-1]), _known(kind, first["loc"]))
        raise InvalidFile(f"{where}: no key is called {place!r}", value=place, way_out=way_out)
    if first["type"] == "missing":
        raise InvalidFile(f"{where}: {place} is missing", value=place, way_out=RESTORE)
    message = first["msg"][:1].lower() + first["msg"][1:]
    problem = f"{where}: {place or 'it'} cannot be {short(first['input'])} ({message})"
    raise InvalidFile(problem, value=first["input"], way_out=RESTORE)


def _known(kind: Any, place: tuple[int | str, ...]) -> set[str]:
    """Return the keys allowed beside the last part of a place inside a noun."""
    kinds = [kind]
    for part in place[:-1]:
        kinds = [inner for each in kinds for inner in _step(each, part)]
    return {
        info.alias or name
        for each in kinds if _is_model(each)
        for name, info in each.model_fields.items()
    }  # fmt: skip


def _step(kind: Any, part: int | str) -> list[Any]:
    """Return the types that may stand at one key, or index, inside a type."""
    if _is_model(kind):
        fields = kind.model_fields.items()
        return [
            inner for name, info in fields if part in (name, info.alias)
            for inner in _alternatives(info.annotation)
        ]  # fmt: skip
    return _alternatives(get_args(kind)[-1 if get_origin(kind) is dict else 0])


def _alternatives(annotation: Any) -> list[Any]:
    """Split a union into its members; a container stays whole."""
    if _is_model(annotation) or get_origin(annotation) in (dict, list, tuple):
        return [annotation]
    return [inner for each in get_args(annotation) for inner in _alternatives(each)]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
