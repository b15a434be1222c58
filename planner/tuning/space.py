"""The flat search space: one variable a choice, so that the sampler sees every one in each trial.

Passes that own the same thing share one categorical *slot*; every other legal pass is on or off.
Settings of a pass that is off are sampled all the same and ignored by `decode`: GP and
multivariate TPE model only variables that stand in every trial.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from planner.case.case import Case
from planner.case.noun import Scalar
from planner.case.telemetry import Telemetry
from planner.errors import UsageError, nearest
from planner.passes import registry
from planner.passes.base import Domain, Pass, domains
from planner.plans.graph import Graph
from planner.plans.plan import Plan

OFF = "off"
_EXACT = 1e-8
"""Share of a step by which a value may miss the grid: what decimal steps lose in binary."""

Space = dict[str, Domain]
Narrowing = Mapping[str, Mapping[str, Mapping[str, Any]]]


def space(
    graph: Graph, case: Case, narrowing: Narrowing | None = None,
    telemetry: Telemetry | None = None,
) -> Space:  # fmt: skip
    """Return variable name → domain for every legal pass: slots first, then settings.

    `telemetry` of the untouched call narrows thresholds to those that change anything.
    """
    narrowing = narrowing or {}
    variables: Space = {}
    for slot, members in slots(graph).items():
        asked = tuple(name for name in members if name in graph.required)
        variables[slot] = Domain(choices=asked or (OFF, *members))
    for one in graph.legal:
        for setting, domain in _domains(
            one, case, narrowing.get(one.name, {}), telemetry
        ).items():
            variables[f"{one.name}.{setting}"] = domain
    return variables


def check_narrowing(narrowing: Narrowing) -> None:
    """Refuse domains of unknown passes and settings, empty ones, and values no pass takes.

    Raises `UsageError`; what only the case can tell is left to `space`.
    """
    for name, settings in narrowing.items():
        if name not in registry.names():
            way_out = nearest(name, registry.names())
            raise UsageError(f"domains name the unknown pass {name!r}", value=name, way_out=way_out)
        _narrowed(registry.get(name), domains(registry.get(name).settings), settings)


def slots(graph: Graph) -> dict[str, tuple[str, ...]]:
    """Return slot name → the passes that may fill it; a pass alone is a slot of its own name.

    Passes joined by a shared claim, directly or through another pass, share a slot. A slot with
    a pass that was asked for (`--with`) offers nothing else.
    """
    groups: list[list[Pass]] = []
    for one in graph.legal:
        joined = [group for group in groups if any(set(one.owns) & set(m.owns) for m in group)]
        merged = [member for group in joined for member in group] + [one]
        groups = [group for group in groups if group not in joined] + [merged]
    named: dict[str, tuple[str, ...]] = {}
    for group in groups:
        names = tuple(member.name for member in group)
        shared = set.intersection(*(set(m.owns) for m in group)) if len(group) > 1 else set()
        named[min(shared) if shared else "|".join(names)] = names
    return named


def decode(params: Mapping[str, Scalar], graph: Graph) -> Plan:
    """Return the canonical legal plan for sampled values.

    A combination that the graph refuses loses passes from the last stage backwards until it is
    legal: two encodings may give the same plan, which is then measured only once.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for slot in slots(graph):
        name = str(params[slot])
        if name != OFF:
            prefix = f"{name}."
            chosen[name] = {
                key.removeprefix(prefix): value
                for key, value in params.items() if key.startswith(prefix)
            }  # fmt: skip
    plan = Plan.of(chosen)
    while plan.passes and graph.why_not(plan) is not None:
        plan = _repair(plan, graph)
    return plan


def encode(plan: Plan, graph: Graph, variables: Space) -> dict[str, Scalar]:
    """Return the values that `decode` turns into this plan; off passes sit at their middle."""
    values: dict[str, Scalar] = {name: _middle(domain) for name, domain in variables.items()}
    for slot, members in slots(graph).items():
        values[slot] = next((name for name in members if name in plan), OFF)
    for entry in plan.passes:
        for setting, value in entry.settings.items():
            if f"{entry.name}.{setting}" in variables:
                values[f"{entry.name}.{setting}"] = value
    return values


def within(values: Mapping[str, Scalar], variables: Space) -> bool:
    """Tell whether every value lies in its domain (Optuna would use others with a warning)."""
    return all(_holds(domain, values[name]) for name, domain in variables.items())


def fitted(plan: Plan, variables: Space) -> Plan:
    """Return the plan with every setting moved to the nearest value that its domain allows."""
    return Plan.of({
        entry.name: {
            setting: _nearest(variables.get(f"{entry.name}.{setting}"), value)
            for setting, value in entry.settings.items()
        }
        for entry in plan.passes
    })  # fmt: skip


def _repair(plan: Plan, graph: Graph) -> Plan:
    """Drop the last pass whose removal makes the plan legal, else the last one not asked for."""
    droppable = [name for name in reversed(plan.names) if name not in graph.required]
    for name in droppable:
        shorter = plan.without(name)
        if graph.why_not(shorter) is None:
            return shorter
    return plan.without((droppable or [plan.names[-1]])[0])


def uninformative(graph: Graph, narrowing: Narrowing, telemetry: Telemetry) -> list[str]:
    """Return one sentence for every asked value or end that lies where it changes nothing."""
    said = []
    for one in (one for one in graph.legal if one.name in narrowing):
        found = one.told(graph.case, telemetry)
        for setting, limits in narrowing[one.name].items():
            known, asked = found.get(setting), _asked(limits)
            if known is None or all(_inside(value, known) for value in asked):
                continue
            words = " to ".join if "choices" not in limits else ", ".join
            said.append(f"{one.name}.{setting} is asked for {words(f'{v:g}' for v in asked)}, but "
                        f"changes something only from {known.low:.3g} to {known.high:.3g} "
                        "here")  # fmt: skip
    return said


def _asked(limits: Mapping[str, Any]) -> list[float]:
    """Return the numbers that a range or choices name."""
    named = limits.get("choices") or (limits.get("low"), limits.get("high"))
    return [float(value) for value in named if isinstance(value, int | float)]


def _inside(value: float, known: Domain) -> bool:
    low, high = known.low or 0.0, known.high or 0.0
    return low * (1 - _EXACT) <= value <= high * (1 + _EXACT)


def _domains(
    one: Pass, case: Case, narrowing: Mapping[str, Mapping[str, Any]],
    telemetry: Telemetry | None,
) -> Space:  # fmt: skip
    found = domains(one.settings)
    if one.narrow is not None:
        found |= one.narrow(case, telemetry)
    known = one.told(case, telemetry) if telemetry and narrowing else {}
    asked = _narrowed(one, found, narrowing)
    return asked | {name: _overlap(asked[name], limits) for name, limits in known.items()
                    if name in narrowing}  # fmt: skip


def _overlap(asked: Domain, known: Domain) -> Domain:
    """Return where an asked range is informative; the range itself where it nowhere is."""
    if asked.choices is not None:
        return asked
    low, high = max(asked.low or 0.0, known.low or 0.0), min(asked.high or 0.0, known.high or 0.0)
    return asked if low >= high else asked.model_copy(update={"low": low, "high": high})


def _narrowed(one: Pass, found: Space, narrowing: Mapping[str, Mapping[str, Any]]) -> Space:
    for setting, limits in narrowing.items():
        if setting not in one.settings.model_fields:
            raise UsageError(
                f"domains name the unknown setting {one.name}.{setting}",
                value=setting,
                way_out=nearest(setting, one.settings.model_fields),
            )
        whole = one.settings.model_fields[setting].annotation is int
        base = found.get(setting, Domain(integer=whole)).model_dump(exclude_defaults=True)
        found[setting] = _checked(one.name, setting, Domain.model_validate(base | dict(limits)))
    return found


def _checked(name: str, setting: str, domain: Domain) -> Domain:
    """Refuse a domain that is no domain or holds what the pass does not take.

    A high that its steps do not reach is lowered to the last one that they do.
    """
    problem = None if domain.choices is not None else _problem(domain)
    if problem is not None:
        what, value, way_out = problem
        raise UsageError(f"the domain of {name}.{setting} {what}", value=value, way_out=way_out)
    for end in domain.choices or (domain.low, domain.high):
        registry.settings_of(name, {setting: end})
    if domain.choices is not None or not domain.step:
        return domain
    steps = ((domain.high or 0.0) - (domain.low or 0.0)) / domain.step
    return domain.model_copy(update={"high": _at(domain, math.floor(steps + _EXACT))})


def _problem(domain: Domain) -> tuple[str, object, str] | None:
    """Return what is wrong with a range, the value, and the way out; None if nothing is."""
    low, high, step = domain.low, domain.high, domain.step
    if low is None or high is None:
        return "has one end only", low if high is None else high, "give low and high, or choices"
    if low > high:
        return f"is empty: {low:g} to {high:g}", low, "give a low at or below the high"
    if domain.log and step is not None and not (domain.integer and step == 1):
        return f"has a step of {step:g} on a log scale", step, "leave it out, or give log: false"
    if domain.log and low <= 0:
        return f"begins at {low:g} on a log scale", low, "give a low above 0, or log: false"
    for number in (low, high, step or 0.0):
        if domain.integer and number % 1:
            return f"holds whole numbers, and {number:g} is none", number, "give a whole number"
    return None


def _middle(domain: Domain) -> Scalar:
    if domain.choices is not None:
        return domain.choices[0]
    low, high = domain.low or 0.0, domain.high or 0.0
    return _snapped(domain, (low * high) ** 0.5 if domain.log else (low + high) / 2)


def _nearest(domain: Domain | None, value: Scalar) -> Scalar:
    if domain is None or _holds(domain, value):
        return value
    if domain.choices is not None or isinstance(value, str) or value is None:
        return _middle(domain)
    low = value if domain.low is None else domain.low
    high = value if domain.high is None else domain.high
    return _snapped(domain, max(low, min(high, value)))


def _snapped(domain: Domain, value: float) -> float:
    """Return the nearest point of the grid to a value inside, where the domain has a grid."""
    if domain.step:
        return _at(domain, round((value - (domain.low or 0.0)) / domain.step))
    return round(value) if domain.integer else value


def _at(domain: Domain, steps: int) -> float:
    """Return the grid's point so many steps above its low."""
    point = (domain.low or 0.0) + steps * (domain.step or 0.0)
    return round(point) if domain.integer else round(point, 12)


def _holds(domain: Domain, value: Scalar) -> bool:
    if domain.choices is not None:
        return value in domain.choices
    if isinstance(value, str) or value is None:
        return False
    low = float("-inf") if domain.low is None else domain.low
    high = float("inf") if domain.high is None else domain.high
    steps = (value - (domain.low or 0.0)) / domain.step if domain.step else 0.0
    return low <= value <= high and abs(steps - round(steps)) < _EXACT
