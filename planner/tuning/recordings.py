"""What reference calls showed to caches, by the passes that were on: precision and steps change it.

The untouched call is recorded before the search. Where a cache calibrates under other passes, its
reference calls are recorded anyway, and what they showed is kept for predictions and neighbours of
plans with the same passes before their cache.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from planner.case.noun import Noun
from planner.case.telemetry import Telemetry
from planner.passes import registry
from planner.passes.base import Fidelity
from planner.plans.plan import BASELINE, Plan
from planner.policy.atomic import replace


class Under(Noun):
    """Telemetry of calls with the passes of a plan on."""

    plan: Plan
    telemetry: Telemetry


class Recordings:
    """Telemetry by plan prefix, in files of a study's folder if there is one."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder, self.broken = folder, list[Path]()
        self._known: dict[Plan, Telemetry] = {}
        for path in sorted(folder.glob("telemetry-*.json")) if folder else ():
            try:
                one = Under.model_validate_json(path.read_bytes())
            except ValidationError:
                self.broken.append(path)
            else:
                self._known[one.plan] = one.telemetry

    @classmethod
    def of(cls, untouched: Telemetry) -> Recordings:
        """Return what one recording of the untouched call says, kept nowhere."""
        found = cls()
        found.keep(BASELINE, untouched)
        return found

    @property
    def untouched(self) -> Telemetry | None:
        """Return what the untouched call showed."""
        return self._known.get(BASELINE)

    def keep(self, prefix: Plan, telemetry: Telemetry) -> None:
        """Keep what calls under a prefix showed; a later recording of it replaces an earlier."""
        plan = _material(prefix)
        self._known[plan] = telemetry
        if self._folder is not None:
            name = f"telemetry-{plan.digest()[:16]}.json"
            content = Under(plan=plan, telemetry=telemetry).model_dump_json()
            replace(self._folder / name, content.encode())

    def before(self, plan: Plan, name: str) -> Telemetry | None:
        """Return what a pass of the plan would see, else what it would see untouched."""
        return self._known.get(_material(plan.before(name)), self.untouched)


def _material(prefix: Plan) -> Plan:
    """Return the passes that change what a call computes: exact ones do not."""
    return Plan(passes=tuple(one for one in prefix.passes
                             if registry.get(one.name).fidelity is not Fidelity.EXACT))  # fmt: skip
