"""Finds every pass file by looking into the family folders; refuses a broken or misnamed one."""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from planner.errors import PlannerError, UsageError, nearest
from planner.passes.base import Family, Pass, Settings

_ROOT = Path(__file__).parent
_OWN = ("base.py", "needs.py", "registry.py")
"""Files beside the family folders that hold no pass."""


@cache
def names() -> dict[str, str]:
    """Return pass name → module path, from the file names alone: nothing is imported."""
    found: dict[str, str] = {}
    for file in sorted((*_ROOT.glob("*.py"), *_ROOT.glob("*/*.py"))):
        place, folder = file.relative_to(_ROOT), file.parent.name
        if file.stem.startswith("_") or str(place) in _OWN:
            continue
        if folder not in set(Family) or file.parent == _ROOT:
            way_out = "move it into one of " + ", ".join(Family)
            raise PlannerError(f"pass file {place} is in no family's folder", value=str(place),
                               way_out=way_out)  # fmt: skip
        if file.stem in found:
            way_out = "rename one of the files"
            raise PlannerError(f"two pass files are called {file.stem!r}", way_out=way_out)
        found[file.stem] = f"planner.passes.{folder}.{file.stem}"
    return found


@cache
def get(name: str) -> Pass:
    """Import one pass by name. Raises `UsageError` with the nearest name if there is none."""
    if name not in names():
        way_out = nearest(name, names())
        raise UsageError(f"no pass is called {name!r}", value=name, way_out=way_out)
    try:
        module = importlib.import_module(names()[name])
    except Exception as error:
        raise PlannerError(f"pass file {name}.py cannot be imported ({error})", value=name,
                           way_out="mend the file or take it away") from error  # fmt: skip
    found = getattr(module, "PASS", None)
    where = names()[name].rpartition(".")[0].rpartition(".")[2]
    if not isinstance(found, Pass):
        way_out = "define PASS = Pass(...) in it"
        raise PlannerError(f"pass file {name}.py holds no PASS", value=name, way_out=way_out)
    if found.name != name or found.family.value != where:
        raise PlannerError(
            f"pass file {where}/{name}.py declares {found.family.value}/{found.name}",
            value=name,
            way_out="file name, folder and declaration must agree",
        )
    return replace(found, doc=module.__doc__ or "")


def all_passes() -> tuple[Pass, ...]:
    """Import every pass, ordered by stage, then by name."""
    return tuple(sorted((get(name) for name in names()), key=lambda p: (p.stage, p.name)))


def settings_of(name: str, values: dict[str, Any]) -> Settings:
    """Validate settings for a pass; defaults are filled in.

    Raises `UsageError` that names pass, field, value and what is allowed.
    """
    from pydantic import ValidationError

    kind = get(name).settings
    unknown = [key for key in values if key not in kind.model_fields]
    if unknown:
        raise UsageError(
            f"pass {name} has no setting {unknown[0]!r}",
            value=unknown[0],
            way_out=nearest(unknown[0], kind.model_fields),
        )
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"{name}.{field} cannot be {first['input']!r} ({_reason(first['msg'])})",
            value=first["input"],
            way_out=f"see `planner passes {name}` for its range",
        ) from error


def learns(name: str, values: dict[str, Any]) -> bool:
    """Tell whether a pass with these settings needs what a calibration finds.

    Raises `UsageError` as `settings_of` does.
    """
    return get(name).learns(settings_of(name, values))


def _reason(message: str) -> str:
    """Return what pydantic says of a value, without its own words around ours."""
    return message.removeprefix("Value error, ").lower()
