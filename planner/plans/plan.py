"""A plan: ordered passes with settings; canonical, hashable, printed in one line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from planner.case.noun import Noun, Scalar
from planner.errors import UsageError
from planner.passes import registry
from planner.passes.base import Settings


class PlannedPass(Noun):
    """One pass with every setting written out, defaults included."""

    name: str
    settings: dict[str, Any] = {}

    def parsed(self) -> Settings:
        """Return the settings as the pass's own type."""
        return registry.settings_of(self.name, self.settings)

    def __hash__(self) -> int:
        return hash((self.name, json.dumps(self.settings, sort_keys=True)))

    def __str__(self) -> str:
        """Print the name and what differs from the defaults; the first field without its name."""
        fields = list(registry.get(self.name).settings.model_fields.items())
        shown = []
        for index, (name, info) in enumerate(fields):
            value = self.settings.get(name, info.default)
            if value != info.default:
                shown.append(_short(value) if index == 0 else f"{name}={_short(value)}")
        return f"{self.name}({', '.join(shown)})" if shown else self.name


class Plan(Noun):
    """Passes in the order in which they are put on. Build with `Plan.of`, which canonicalises."""

    passes: tuple[PlannedPass, ...] = ()

    @classmethod
    def of(cls, passes: Mapping[str, Mapping[str, Any]] | Iterable[PlannedPass]) -> Plan:
        """Make the canonical plan: stage order, every default written out, names checked.

        Raises `UsageError` for an unknown pass or setting, or a pass named twice.
        """
        if isinstance(passes, Mapping):
            items = [(name, _settings(name, values)) for name, values in passes.items()]
        else:
            items = [(entry.name, dict(entry.settings)) for entry in passes]
        names = [name for name, _ in items]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"pass {twice!r} stands twice in a plan", value=twice,
                             way_out="name it once")  # fmt: skip
        entries = []
        for name, values in items:
            settings = registry.settings_of(name, values).model_dump(mode="json")
            entries.append(PlannedPass(name=name, settings=settings))
        order = {p.name: (registry.get(p.name).stage, p.name) for p in entries}
        return cls(passes=tuple(sorted(entries, key=lambda entry: order[entry.name])))

    @property
    def names(self) -> tuple[str, ...]:
        """Return the pass names in order."""
        return tuple(entry.name for entry in self.passes)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def settings(self, name: str) -> dict[str, Any]:
        """Return one pass's settings as written."""
        return next(entry.settings for entry in self.passes if entry.name == name)

    def without(self, name: str) -> Plan:
        """Return this plan less one pass."""
        return Plan(passes=tuple(entry for entry in self.passes if entry.name != name))

    def replaced(self, name: str, settings: Mapping[str, Any]) -> Plan:
        """Return this plan with other settings of one pass."""
        return Plan.of({
            entry.name: settings if entry.name == name else entry.settings
            for entry in self.passes
        })  # fmt: skip

    def before(self, name: str) -> Plan:
        """Return the passes that are put on before the named one: a calibration's prefix."""
        return Plan(passes=self.passes[: self.names.index(name)])

    def __hash__(self) -> int:
        return hash(self.passes)

    def __str__(self) -> str:
        return " > ".join(str(entry) for entry in self.passes) or "baseline"


BASELINE = Plan()
"""The untouched pipeline under the workload's own call."""


def _settings(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise UsageError(f"settings of {name} are {values!r}, which names none", value=values,
                         way_out="give a mapping, {} for the defaults")  # fmt: skip
    return dict(values)


def _short(value: Scalar) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
