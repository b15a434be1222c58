"""What may be tried, declared by a person: `search/*.yaml`, read strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator

from planner.case.noun import Noun, Scalar
from planner.errors import InvalidFile, UsageError, nearest
from planner.strict_yaml import read
from planner.units import parse_bytes, parse_seconds


class Limits(Noun):
    """What a search may try for one setting: a range or a list of choices."""

    model_config = ConfigDict(strict=True)

    low: float | None = None
    high: float | None = None
    step: float | None = Field(None, gt=0)
    log: bool | None = None
    choices: tuple[Scalar, ...] | None = Field(None, min_length=1)

    @field_validator("high")
    @classmethod
    def _above_low(cls, high: float | None, info: Any) -> float | None:
        low = info.data.get("low")
        if high is not None and low is not None and high < low:
            raise ValueError(f"high is below low, which is {low:g}")
        return high


class Overrides(Noun):
    """Arguments of the reference call that differ from what the catalogue says.

    Fields are named like the options of `planner tune`; `call` takes any other keyword argument
    of the pipeline call, such as negative_prompt.
    """

    model_config = ConfigDict(strict=True)

    steps: int | None = Field(None, ge=1)
    height: int | None = Field(None, ge=8)
    width: int | None = Field(None, ge=8)
    guidance: float | None = None
    batch: int | None = Field(None, ge=1)
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    call: dict[str, Scalar] | None = None


class SearchFile(Noun):
    """A declared search: the model, the goal, and what is narrowed; flags override it.

    Keys are named like the options of `planner tune` and mean the same; `domains` is
    pass → setting → {low, high, step, log, choices}.
    """

    model_config = ConfigDict(strict=True, populate_by_name=True)

    model: str = "shapes"
    revision: str | None = None
    path: str | None = None
    device: str | None = None
    prompts: str | None = None
    budget: str | None = None
    vram: str | None = None
    max_lpips: str | None = None
    prefer: Literal["quality", "speed"] | None = None
    with_passes: tuple[str, ...] = Field((), alias="with")
    without_passes: tuple[str, ...] = Field((), alias="without")
    domains: dict[str, dict[str, Limits]] = {}
    workload: Overrides = Overrides()
    search_time: str | None = None
    trials: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)
    sampler: Literal["gp", "tpe"] = "gp"

    @field_validator("max_lpips", mode="before")
    @classmethod
    def _cap_as_text(cls, cap: Any) -> Any:
        is_number = isinstance(cap, int | float) and not isinstance(cap, bool)
        return f"{cap:g}" if is_number else cap

    @property
    def narrowing(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return the domains as plain values: only what the file says."""
        return {
            name: {
                setting: limits.model_dump(exclude_none=True)
                for setting, limits in settings.items()
            }
            for name, settings in self.domains.items()
        }


def read_search(path: Path) -> SearchFile:
    """Read a search file; `prompts` and `path` are relative to the folder it lies in.

    Raises `UsageError` where there is no such file, `InvalidFile` for anything unreadable, and
    for an unknown key with the nearest known one.
    """
    body = read(path, what="a search file")
    known = {info.alias or name for name, info in SearchFile.model_fields.items()}
    _check_keys(body, known, str(path))
    if isinstance(body.get("workload"), dict):
        _check_keys(body["workload"], set(Overrides.model_fields), f"{path}: workload")
    for name, settings in _mappings(body.get("domains")):
        for setting, limits in _mappings(settings):
            _check_keys(limits, set(Limits.model_fields), f"{path}: domains.{name}.{setting}")
    for key, parse in (("budget", parse_seconds), ("search_time", parse_seconds),
                       ("vram", parse_bytes)):  # fmt: skip
        if isinstance(body.get(key), str | int | float):
            _check_quantity(path, key, str(body[key]), parse)
    try:
        search = SearchFile.model_validate_json(json.dumps(body))
    except ValidationError as error:
        raise _invalid(path, error) from error
    return search.model_copy(update=_resolved(search, path.parent))


def _mappings(value: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return the entries that are mappings; the noun refuses the others."""
    if not isinstance(value, dict):
        return []
    return [(key, entry) for key, entry in value.items() if isinstance(entry, dict)]


def _check_keys(body: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in body:
        if key not in known:
            way_out = nearest(key, known)
            raise InvalidFile(f"{where} has the unknown key {key!r}", value=key, way_out=way_out)


def _check_quantity(path: Path, key: str, text: str, parse: Any) -> None:
    try:
        parse(text)
    except UsageError as error:
        raise InvalidFile(
            f"{path}: {key}: {error.what}", value=text, way_out=error.way_out
        ) from error


def _invalid(path: Path, error: ValidationError) -> InvalidFile:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    what = f"{path}: {where} cannot be {first['input']!r}"
    way_out = first["msg"].removeprefix("Value error, ").lower()
    return InvalidFile(what, value=first["input"], way_out=way_out)


def _resolved(search: SearchFile, folder: Path) -> dict[str, str]:
    """Return `prompts` and `path` as they are seen from the working directory."""
    named = {"prompts": search.prompts, "path": search.path}
    return {key: str(folder / text) for key, text in named.items() if text is not None}
