"""Planner's own methods, read off the registry: every approximate cache that is legal here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from planner.case.noun import Scalar
from planner.case.prompts import Prompt
from planner.hooks.clock import StepClock
from planner.passes import registry
from planner.passes.base import Artifact, Context, Domain, Family, Fidelity, Pass, domains
from planner.plans.graph import Graph
from planner.plans.plan import Plan, PlannedPass
from planner.run.apply import put_on
from planner.trials.reference import ReferenceCalls
from planner.tuning.bench.knobs import nearest
from planner.tuning.bench.method import Learned, Method, Side
from planner.tuning.bench.rig import Rig

Settings = Mapping[str, Scalar]

WRAPPERS = frozenset({"first_block_cache", "dual_block_cache"})
"""Passes that put another library's cache on: these count as that library's."""

VARIANTS: dict[str, tuple[Settings, ...]] = {
    "step_mask": (
        {"order": 1}, {"order": 0}, {"order": 1, "early": 1.0}, {"order": 1, "tensor": "residual"},
        {"tensor": "groups", "order": 1},
    ),
    "tea_cache": ({}, {"start": 0.05}),
    "mag_cache": ({}, {"most": 5, "start": 0.1}),
}
"""Settings beside the main knob that make methods of their own; one, the defaults, otherwise."""

STACKS: tuple[tuple[str, ...], ...] = (("uncond_cache", "step_mask"),)
"""Caches that are tried together where they may stand together; the last one has the knob, in the
first of its variants."""


def planned(graph: Graph, stacks: Sequence[tuple[str, ...]] = STACKS) -> list[Method]:
    """Return planner's methods for a case, single caches first, then stacks."""
    legal = {one.name: one for one in graph.legal if one.reversible}
    found = []
    for one in legal.values():
        own = one.family is Family.CACHING and one.fidelity is Fidelity.APPROXIMATE
        if own and one.name not in WRAPPERS and knob_of(one, graph) is not None:
            found += [_method(graph, (one.name,), fixed) for fixed in VARIANTS.get(one.name, ({},))]
    for names in stacks:
        together = all(name in legal for name in names) and graph.why_not(_plan(names, {})) is None
        if together:
            found.append(_method(graph, names, VARIANTS.get(names[-1], ({},))[0]))
    return found


def fewer_steps(graph: Graph) -> list[Method]:
    """Return the method that every cache must beat, where the case allows it."""
    legal = any(one.name == "steps" for one in graph.legal)
    return [_method(graph, ("steps",), {}, side="steps")] if legal else []


def knob_of(one: Pass, graph: Graph) -> tuple[str, Domain] | None:
    """Return a pass's main knob, its first searched field, with the domain of the case."""
    found = domains(one.settings)
    name = next(iter(found), None)
    if name is None:
        return None
    narrowed = one.narrow(graph.case, None) if one.narrow else {}
    return name, narrowed.get(name, found[name])


def replayed(name: str, side: Side, recipe: Mapping[str, Any]) -> Method:
    """Return a method with one setting, from what a recipe says: plan and artifacts."""
    plan = Plan.model_validate(recipe["plan"])
    return Method(
        name=name, side=side, source="planner", knob="setting", domain=Domain(choices=(None,)),
        default=None, on=_on(lambda _: plan), recipe=lambda _, learned: dict(recipe),
    )  # fmt: skip


def _plan(names: Sequence[str], settings: Settings) -> Plan:
    """Return the plan of some passes at their defaults, the last one with settings."""
    return Plan.of({name: settings if name == names[-1] else {} for name in names})


def _method(
    graph: Graph, names: Sequence[str], fixed: Settings, side: Side = "ours"
) -> Method:
    main = registry.get(names[-1])
    found = knob_of(main, graph)
    assert found is not None, f"{main.name} has no knob"
    knob, domain = found

    def plan(value: Scalar) -> Plan:
        return _plan(names, {**fixed, knob: value})

    def recipe(value: Scalar, learned: Learned) -> dict[str, Any]:
        chosen = plan(value)
        return {"plan": chosen.model_dump(mode="json"), "learned": _kept(chosen, learned)}

    default = nearest(domain, main.settings.model_fields[knob].default)
    learns = any(registry.get(name).calibrate for name in names)
    words = ", ".join(f"{key} {value}" for key, value in fixed.items())
    name = " + ".join(names) + (f" ({words})" if words else "")
    return Method(
        name=name, side=side, source="planner",
        knob=knob, domain=domain, default=default, on=_on(plan), lesson=name,
        learn=_learn(plan(default)) if learns else None, recipe=recipe,
    )  # fmt: skip


def _on(plan: Callable[[Scalar], Plan]) -> Any:
    @contextmanager
    def on(rig: Rig, value: Scalar, learned: Learned) -> Iterator[Mapping[str, Any]]:
        with put_on(rig.pipeline, plan(value), rig.case, learned, rig.memo):
            yield {}

    return on


def _learn(plan: Plan) -> Callable[[Rig, tuple[Prompt, ...]], Learned]:
    def learn(rig: Rig, prompts: tuple[Prompt, ...]) -> Learned:
        known: Learned = {}
        for entry in plan.passes:
            if registry.get(entry.name).calibrate is not None:
                known[entry.name] = calibrated(rig, plan, entry, known, prompts)
        return known

    return learn


def calibrated(
    rig: Rig, plan: Plan, entry: PlannedPass, known: Learned, prompts: tuple[Prompt, ...]
) -> Artifact:
    """Let one pass learn with all earlier passes on, as in a trial."""
    calibrate = registry.get(entry.name).calibrate
    assert calibrate is not None
    with reference_calls(rig, plan.before(entry.name), known, prompts) as (calls, clock):
        context = Context(
            case=rig.case, clock=clock, plan=tuple((p.name, p.parsed()) for p in plan.passes),
            memo=rig.memo.setdefault(entry.name, {}),
        )  # fmt: skip
        artifact = calibrate(rig.pipeline, entry.parsed(), context, calls)
    return dict(json.loads(json.dumps(artifact, allow_nan=False)))


@contextmanager
def reference_calls(
    rig: Rig, prefix: Plan, known: Learned, prompts: tuple[Prompt, ...]
) -> Iterator[tuple[ReferenceCalls, StepClock]]:
    """Give calls of the prompts under a plan, with their clock, inside the block."""
    clock = StepClock()

    def render() -> None:
        for prompt in prompts:
            with clock.call():
                rig.call(prompt, {})

    key = (prefix, prompts)
    with put_on(rig.pipeline, prefix, rig.case, known, rig.memo):
        detach = clock.attach(rig.pipeline.scheduler)
        try:
            yield ReferenceCalls(rig.pipeline, clock, render, rig.case, rig.recorded, key), clock
        finally:
            detach()


def _kept(plan: Plan, learned: Learned) -> Learned:
    """Return the part of the artifacts that these settings need."""
    kept = {}
    for entry in plan.passes:
        artifact, needed = learned.get(entry.name), registry.get(entry.name).needed
        if artifact is not None:
            kept[entry.name] = needed(artifact, entry.parsed()) if needed else artifact
    return kept
