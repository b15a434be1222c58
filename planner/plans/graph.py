"""Which passes may stand together in a case, in which order, and why not.

Two networks over the legal passes: `order` (an edge from every stage to the later ones) and
`compatible` (an edge between passes that may stand in one plan). Its cliques are the stacks.
The only file that knows networkx.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx
from pydantic import ValidationError

from planner.case.case import Case
from planner.errors import UsageError, nearest
from planner.passes import registry
from planner.passes.base import Avoid, Pass, Settings, domains
from planner.plans.plan import Plan
from planner.plans.rules import APART, RULES, Planned, Rule, Verdict, missing_libraries


class Clash(NamedTuple):
    """Two passes that do not go together; `always` tells that no settings help."""

    a: str
    b: str
    verdict: Verdict
    because: str
    source: str
    always: bool = True

    def __str__(self) -> str:
        return f"{self.because} ({self.source})"

    @property
    def worded(self) -> str:
        """Say what the clash means for a plan, and why."""
        verdict = "not together" if self.verdict == "breaks" else self.verdict
        return f"{verdict}{'' if self.always else ' with some settings'}: {self}"


@dataclass(frozen=True)
class Graph:
    """The passes of a case: legal ones in plan order, the others with the reason, and clashes.

    `excluded` maps a pass to one sentence with its source; `required` are the passes that the
    user asked for: a plan that lacks one is not legal.
    """

    case: Case
    legal: tuple[Pass, ...]
    excluded: dict[str, str]
    clashes: tuple[Clash, ...]
    required: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = RULES
    order: Any = field(default=None, repr=False, compare=False)
    compatible: Any = field(default=None, repr=False, compare=False)

    def why_not(self, plan: Plan) -> str | None:
        """Return None for a legal plan, else one sentence with the reason and its source."""
        return self._names(plan) or self._together(plan, "breaks")

    def advice(self, plan: Plan) -> tuple[str, ...]:
        """Return sentences about a legal plan that is likely slower or risky."""
        said = (self._together(plan, "slower"), self._together(plan, "risky"))
        return tuple(sentence for sentence in said if sentence)

    def stacks(self) -> tuple[tuple[str, ...], ...]:
        """Return the largest sets of passes that may stand together, each in plan order.

        Settings may still make a set illegal: `why_not` of a whole plan has the last word.
        """
        position = {one.name: index for index, one in enumerate(self.legal)}
        found = [sorted(clique, key=position.__getitem__) for clique in self._cliques()]
        kept = [tuple(stack) for stack in found if set(self.required) <= set(stack)]
        return tuple(sorted(kept, key=lambda stack: [position[name] for name in stack]))

    @property
    def exclusions(self) -> tuple[str, ...]:
        """Return one line a pass that is not legal: its name and the reason."""
        return tuple(
            why if why.startswith(f"{name} ") else f"{name}: {why}"
            for name, why in sorted(self.excluded.items())
        )

    def picture(self, path: Path) -> None:
        """Draw passes, order, clashes and exclusions into a PNG or SVG file."""
        from planner.plans.picture import draw

        draw(self, list(nx.transitive_reduction(self.order).edges), path)

    def _cliques(self) -> Iterable[list[str]]:
        return nx.find_cliques(self.compatible) if len(self.compatible) else [[]]

    def _names(self, plan: Plan) -> str | None:
        """Judge the names and their order, before any settings are read."""
        known = {one.name: one for one in self.legal}
        names = [entry.name for entry in plan.passes]
        for name in names:
            if name in self.excluded:
                return f"{name} is not legal here: {self.excluded[name].removeprefix(f'{name} ')}"
            if name not in known:
                return f"no pass is called {name!r}: {nearest(name, {*known, *self.excluded})}"
            if names.count(name) > 1:
                return f"{name} stands twice in the plan: name it once"
        for first, second in pairwise(names):
            if _place(known[first]) > _place(known[second]):
                why = f"{_stage(known[second])} comes before {_stage(known[first])}"
                return f"{first} stands before {second}, but {why} (stages of planner/passes)"
        lacking = next((name for name in self.required if name not in names), None)
        return lacking and f"the plan lacks {lacking}, which was asked for with --with"

    def _together(self, plan: Plan, verdict: Verdict) -> str | None:
        """Judge claims, pairs and whole-plan rules on the settings as they are."""
        known = {one.name: one for one in self.legal}
        stack = []
        for entry in plan.passes:
            parsed = _parse(known[entry.name], entry.settings)
            if isinstance(parsed, str):
                return parsed if verdict == "breaks" else None
            stack.append(Planned(known[entry.name], parsed))
        for a, b in combinations(stack, 2):
            clash = _clash(self.case, a, b, verdict)
            if clash is not None:
                return str(clash)
        answers = (
            (rule.answer(self.case, stack), rule) for rule in self.rules if rule.verdict == verdict
        )
        return next((f"{said} ({rule.source})" for said, rule in answers if said), None)


def build(
    case: Case,
    passes: Sequence[Pass] | None = None,
    with_: Sequence[str] = (),
    without: Sequence[str] = (),
) -> Graph:
    """Judge every pass in this case; `with_` must stand in every plan, `without` in none.

    Raises `UsageError` for an unknown name, and for a required pass that cannot be had, with
    the reason.
    """
    every = tuple(registry.all_passes() if passes is None else passes)
    _check_names((*with_, *without), every)
    excluded = {one.name: said for one in every if (said := _excluded(one, case, without))}
    legal = [one for one in every if one.name not in excluded]
    clashes = _clashes(case, legal)
    for clash in clashes:
        _exclude_for(clash, with_, excluded)
    for name in with_:
        if name in excluded:
            raise UsageError(f"{name} cannot be used here", value=name, way_out=excluded[name])
    legal = [one for one in legal if one.name not in excluded]
    clashes = [one for one in clashes if one.a not in excluded and one.b not in excluded]
    order = _order(legal)
    known = {one.name: one for one in legal}
    sequence = nx.lexicographical_topological_sort(order, key=lambda name: _place(known[name]))
    return Graph(
        case=case,
        legal=tuple(known[name] for name in sequence),
        excluded=excluded,
        clashes=tuple(clashes),
        required=tuple(dict.fromkeys(with_)),
        order=order,
        compatible=_compatible(legal, clashes),
    )


def _check_names(names: Sequence[str], every: Sequence[Pass]) -> None:
    known = {one.name for one in every}
    for name in names:
        if name not in known:
            way_out = nearest(name, known)
            raise UsageError(f"no pass is called {name!r}", value=name, way_out=way_out)


def _excluded(one: Pass, case: Case, without: Sequence[str]) -> str | None:
    """Return why a pass is not legal in this case, by itself."""
    if one.name in without:
        return "left out with --without (the command or search file)"
    unmet = [f"{said} ({need.source})" for need in one.needs if (said := need.missing(case))]
    libraries = [f"{said} (imports of the pass)" for said in missing_libraries(one, case)]
    return "; ".join(unmet + libraries) or None


def _exclude_for(clash: Clash, with_: Sequence[str], excluded: dict[str, str]) -> None:
    """Exclude the partner of a required pass that it can never stand beside."""
    if clash.verdict != "breaks" or not clash.always:
        return
    if clash.a in with_ and clash.b in with_:
        raise UsageError(
            f"{clash.a} and {clash.b} cannot both be asked for", value=clash.b, way_out=str(clash)
        )
    for wanted, other in ((clash.a, clash.b), (clash.b, clash.a)):
        if wanted in with_:
            excluded[other] = f"{wanted} was asked for with --with, and {clash}"


def _clashes(case: Case, legal: Sequence[Pass]) -> list[Clash]:
    """Return the clash of every pair: for all settings (always), or for some of those tried."""
    found = []
    for a, b in combinations(legal, 2):
        for verdict in ("breaks", "slower", "risky"):
            tried = [
                _clash(case, Planned(a, mine), Planned(b, other), verdict)
                for mine in _samples(a) for other in _samples(b)
            ]  # fmt: skip
            hit = next((clash for clash in tried if clash is not None), None)
            if hit is not None:
                found.append(hit._replace(always=all(clash is not None for clash in tried)))
    return found


def _clash(case: Case, a: Planned, b: Planned, verdict: Verdict) -> Clash | None:
    """Return how two passes clash with these settings, by their claims or a declared pair."""
    shared = sorted(set(a.pass_.owns) & set(b.pass_.owns))
    names = a.pass_.name, b.pass_.name
    if shared and verdict == "breaks":
        because = f"{names[0]} and {names[1]} both own {shared[0]}: keep one"
        return Clash(*names, "breaks", because, "a thing has one owner in a plan")
    for apart in APART if verdict == "breaks" else ():
        said = apart.said_of(a.pass_, b.pass_)
        if said is not None:
            return Clash(*names, "breaks", said, apart.source)
    for mine, other in ((a, b), (b, a)):
        for avoid in mine.pass_.avoids:
            if avoid.verdict == verdict and _applies(avoid, case, mine, other):
                pair = f"{mine.pass_.name} avoids {other.pass_.name}: {avoid.because}"
                return Clash(*names, verdict, pair, avoid.source)
    return None


def _applies(avoid: Avoid, case: Case, mine: Planned, other: Planned) -> bool:
    if avoid.other != other.pass_.name:
        return False
    return avoid.when is None or avoid.when(case, mine.settings, other.settings)


def _samples(one: Pass) -> list[Settings]:
    """Return settings to try a conditional clash on: default, seeds, every searched extreme."""
    values: list[dict[str, Any]] = [{}, *(dict(seed) for seed in one.seeds)]
    for name, domain in domains(one.settings).items():
        ends = domain.choices if domain.choices is not None else (domain.low, domain.high)
        values += [{name: int(end) if domain.integer and end is not None else end} for end in ends]
    parsed = (_parse(one, settings) for settings in values)
    return [settings for settings in parsed if not isinstance(settings, str)]


def _parse(one: Pass, values: dict[str, Any]) -> Settings | str:
    """Return the settings, or one sentence why they are none."""
    try:
        return one.settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([one.name, *(str(part) for part in first["loc"])])
        return (
            f"{where} cannot be {first['input']!r}: {first['msg'].lower()} ({one.name}'s settings)"
        )


def _order(legal: Sequence[Pass]) -> Any:
    """Return the directed network of stages: an edge means « is put on before »."""
    order = nx.DiGraph()
    order.add_nodes_from(one.name for one in legal)
    order.add_edges_from((a.name, b.name) for a in legal for b in legal if a.stage < b.stage)
    return order


def _compatible(legal: Sequence[Pass], clashes: Sequence[Clash]) -> Any:
    """Return the undirected network of passes that some settings let stand together."""
    apart = {frozenset((c.a, c.b)) for c in clashes if c.always and c.verdict == "breaks"}
    compatible = nx.Graph()
    compatible.add_nodes_from(one.name for one in legal)
    pairs = combinations((one.name for one in legal), 2)
    compatible.add_edges_from(pair for pair in pairs if frozenset(pair) not in apart)
    return compatible


def _place(one: Pass) -> tuple[int, str]:
    return int(one.stage), one.name


def _stage(one: Pass) -> str:
    return one.stage.name.lower().replace("_", " ")
