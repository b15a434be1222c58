"""The JSON Schema of a noun in draft 7, which is what YAML editors understand."""

from __future__ import annotations

from typing import Any

from planner.case.noun import Noun

NAME = "planner-v1.schema.json"
"""File under which policies refer to their schema: in policies/, two folders above them."""


def draft7(kind: type[Noun], title: str) -> dict[str, Any]:
    """Return the schema of a noun as written with its aliases.

    pydantic writes draft 2020-12; the differences are renamed: `$defs`, and `prefixItems` of
    tuples (https://json-schema.org/draft/2020-12/release-notes).
    """
    found: dict[str, Any] = _renamed(kind.model_json_schema(by_alias=True))
    return {"$schema": "http://json-schema.org/draft-07/schema#"} | found | {"title": title}


def _renamed(value: Any) -> Any:
    if isinstance(value, list):
        return [_renamed(inner) for inner in value]
    if isinstance(value, str):
        return value.replace("#/$defs/", "#/definitions/")
    if not isinstance(value, dict):
        return value
    names = {"$defs": "definitions", "prefixItems": "items"}
    renamed = {names.get(key, key): _renamed(inner) for key, inner in value.items()}
    return renamed | {"additionalItems": False} if "prefixItems" in value else renamed
