"""The ladder that is recommended on a device that is not here: each rung predicted, none measured.

Rungs come in the order in which people adopt them: quantize, make it fit, cache, take fewer steps.
Every rung stands on those below it. Quality is not predicted: what others published of a rung's
passes stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from planner.case.goal import Goal
from planner.case.work import Work
from planner.catalog.devices import Card
from planner.catalog.quality import published, sentence
from planner.passes import registry
from planner.passes.base import Family, Fidelity
from planner.plans.graph import Graph
from planner.plans.plan import Plan
from planner.prediction.estimate import Estimate, estimate
from planner.prediction.memory import peak
from planner.prediction.speeds import fitted, margin
from planner.tuning.rungs import Ladder, Name, Rung

Stack = dict[str, Mapping[str, Any]]

_COMPILER = "compile_blocks"
_PRECISION = "denoiser.linear_precision"
_REUSE = "denoiser.step_reuse"
_FEWEST_STEPS = 4
_MOST_MEMORY_PASSES = 2


class Planner:
    """Climbs the ladder of one model on one device under one goal."""

    def __init__(self, graph: Graph, work: Work, card: Card, goal: Goal) -> None:
        """Take the legal graph and the untouched work of the same case."""
        self._graph, self._work, self._card, self._goal = graph, work, card, goal
        self._limit = min(goal.vram_bytes or card.memory_bytes, card.memory_bytes)
        self._seen: dict[Plan, Estimate] = {}
        self._works: dict[Plan, Work] = {}

    def climb(self) -> Ladder:
        """Return the ladder up to the rung that meets the goal, or as far as it goes."""
        stack: Stack = {}
        rungs = [self._rung("untouched", stack, "the reference")]
        for name, choose in (("quantize", self._quantized), ("fit", self._fitting)):
            better = choose(stack) if self._climbs(rungs[-1]) else None
            if better is not None:
                stack = better
                rungs.append(self._rung(name, stack, _quality(stack)))  # type: ignore[arg-type]
        cached = self._cached(stack) if self._climbs_inside(rungs[-1]) else None
        if cached is not None:
            stack = dict(cached.passes)
            rungs.append(cached)
        shorter = self._shorter(stack, rungs[-1]) if self._climbs_inside(rungs[-1]) else None
        rungs += [shorter] if shorter is not None else []
        rungs[1:] = [self._anchored(below, rung) for below, rung in pairwise(rungs)]
        return Ladder(rungs=tuple(rungs), meets=self._meets(rungs[-1]),
                      floor=self._floor(stack), front=self._front())  # fmt: skip

    def _anchored(self, below: Rung, rung: Rung) -> Rung:
        """Return a rung with what others measured of the images of its new, inexact passes."""
        new = [name for name in rung.passes if name not in below.passes
               and registry.get(name).fidelity is not Fidelity.EXACT]  # fmt: skip
        model = self._graph.case.model.id
        found = tuple(one for name in new for one in published(name, model))
        words = [rung.quality, sentence(new, model)] if new else [rung.quality]
        return rung.model_copy(update={"anchors": found, "quality": "; ".join(words)})

    def _estimate(self, stack: Stack) -> Estimate:
        plan = Plan.of(stack)
        if plan not in self._seen:
            work = self._worked(plan)
            kind: Literal["compiled", "eager"] = "compiled" if _COMPILER in stack else "eager"
            self._seen[plan] = estimate(work, self._card, kind)
        return self._seen[plan]

    def _worked(self, plan: Plan) -> Work:
        """Return the work under a plan; many plans share what their first passes make of it."""
        if not plan.passes:
            return self._work
        if plan not in self._works:
            last = plan.passes[-1]
            before = self._worked(plan.before(last.name))
            self._works[plan] = registry.get(last.name).effect(before, last.parsed(), None)
        return self._works[plan]

    def _rung(self, name: Name, stack: Stack, quality: str) -> Rung:
        found = self._estimate(stack)
        return Rung(
            name=name, plan=str(Plan.of(stack)), passes=_plain(stack), seconds=found.seconds,
            low=found.low, high=found.high, memory=found.memory.total,
            lacks=max(0.0, found.memory.total - self._limit),
            rests_on=_words(found.rests_on), quality=quality,
        )  # fmt: skip

    def _meets(self, rung: Rung) -> bool:
        budget = self._goal.budget_seconds
        return rung.lacks == 0 and (budget is None or rung.seconds <= budget)

    def _climbs(self, rung: Rung) -> bool:
        """Tell whether a rung is not the end: the goal is not met, or none was set."""
        without = self._goal.budget_seconds is None and self._goal.vram_bytes is None
        return without or not self._meets(rung)

    def _climbs_inside(self, rung: Rung) -> bool:
        """Tell whether a rung that fits is not the end: no cache and no step gives memory back."""
        return rung.lacks == 0 and self._climbs(rung)

    def _legal(self, stack: Stack) -> bool:
        return self._graph.why_not(Plan.of(stack)) is None

    def _owning(self, what: str) -> list[str]:
        """Return the legal passes that claim a thing, in plan order."""
        return [one.name for one in self._graph.legal if what in one.owns]

    def _with(self, stack: Stack, *names: str) -> Stack:
        return stack | {name: registry.get(name).seeds[0] for name in names}

    def _quantized(self, stack: Stack) -> Stack | None:
        """Return the number format that is fastest once it fits, smallest where none does.

        None where every format takes longer than none and all fits without one.
        """
        found = []
        for names in ([name] for name in self._owning(_PRECISION)):
            both = (self._with(stack, *names, _COMPILER), self._with(stack, *names))
            found += [grown for grown in both if self._legal(grown)][:1]
        alone = self._with(stack, _COMPILER)
        found += [alone] if self._legal(alone) else []
        best = min(found, key=self._order, default=stack)
        return best if self._order(best) < self._order(stack) else None

    def _order(self, stack: Stack) -> tuple[float, float]:
        """Rank by what the memory lacks once weights may move, then by the time that takes."""
        found = self._estimate(self._fitting(stack) or stack)
        return (max(0.0, found.memory.total - self._limit), found.seconds)

    def _peak(self, stack: Stack) -> float:
        """Return the memory of a stack, which compiled blocks do not change."""
        plan = Plan.of({name: v for name, v in stack.items() if name != _COMPILER})
        return peak(self._worked(plan), margin(fitted())).total

    def _fitting(self, stack: Stack) -> Stack | None:
        """Return the fastest way to fit, or the smallest where none does; None if it fits."""
        if self._peak(stack) <= self._limit:
            return None
        formats = self._owning(_PRECISION)
        names = [one.name for one in self._graph.legal
                 if one.family is Family.MEMORY and one.name not in (*stack, *formats)]  # fmt: skip
        found = list(self._moved(stack, names, _MOST_MEMORY_PASSES))
        inside = [grown for grown in found if self._peak(grown) <= self._limit]
        if inside:
            return min(inside, key=lambda grown: self._estimate(grown).seconds)
        return min(found, key=self._peak, default=None)

    def _moved(self, stack: Stack, names: Sequence[str], count: int) -> Iterator[Stack]:
        """Yield the stack with up to `count` of the memory passes.

        Nothing is added to what fits already: no memory pass makes another one faster.
        """
        for place, name in enumerate(names):
            for settings in registry.get(name).seeds:
                grown = stack | {name: settings}
                if not self._legal(grown):
                    continue
                yield grown
                if count > 1 and self._peak(grown) > self._limit:
                    yield from self._moved(grown, names[place + 1 :], count - 1)

    def _cached(self, stack: Stack) -> Rung | None:
        """Return the rung of a cache: one that needs no calibration, if there is one.

        Among these what needs no further library, and what reuses residuals rather than outputs,
        which bears more error (Delta-DiT's ablation), comes first.
        What a cache that decides at run time leaves to compute is not known before: the range of
        others' caches stands for it.
        """
        names = sorted(self._owning(_REUSE), key=_burden)
        grown = (self._with(stack, name) for name in names)
        chosen = next((one for one in grown if self._legal(one)), None)
        if chosen is None:
            return None
        if self._estimate(chosen).seconds < self._estimate(stack).seconds:
            return self._rung("cache", chosen, _quality(chosen))
        shares = sorted(value for key, value in fitted().caches.items() if "," not in key)
        found = self._estimate(stack)
        rest = found.seconds - found.by_phase["denoise"]
        least, middle, most = (
            rest + share * found.by_phase["denoise"]
            for share in (shares[0], shares[len(shares) // 2], shares[-1])
        )  # fmt: skip
        spread, rung = found.high / found.seconds, self._rung("cache", chosen, "")
        return rung.model_copy(update={
            "seconds": middle, "low": least / spread, "high": most * spread,
            "rests_on": f"{_words(found.rests_on)}; {shares[0]:.0%} to {shares[-1]:.0%} of the "
                        "denoiser left to compute, as published of other models' caches",
            "quality": "depends on a threshold that only a reference run can set",
        })  # fmt: skip

    def _shorter(self, stack: Stack, below: Rung) -> Rung | None:
        """Return the rung of the most steps that meet the budget, at least four of them."""
        budget, steps = self._goal.budget_seconds, self._graph.case.workload.steps
        if budget is None or below.seconds <= budget:
            return None
        found = self._estimate(stack)
        share = below.seconds / found.seconds
        rest = found.seconds - found.by_phase["denoise"]
        wanted = steps * (budget / share - rest) / found.by_phase["denoise"]
        fewer = max(_FEWEST_STEPS, min(steps - 1, int(wanted)))
        chosen: Stack = stack | {"steps": {"num_inference_steps": fewer}}
        if fewer >= steps or not self._legal(chosen):
            return None
        scale = self._estimate(chosen).seconds / found.seconds
        return below.model_copy(update={
            "name": "steps", "plan": str(Plan.of(chosen)), "passes": _plain(chosen),
            "seconds": below.seconds * scale, "low": below.low * scale,
            "high": below.high * scale, "quality": "another trajectory: unknown until measured",
        })  # fmt: skip

    def _floor(self, stack: Stack) -> dict[str, float]:
        """Return what the highest stack takes at its least with one denoising step."""
        found = self._estimate({name: v for name, v in stack.items() if name != "steps"})
        parts = found.by_phase | {"host": found.seconds - sum(found.by_phase.values())}
        parts["denoise"] /= self._graph.case.workload.steps
        return {name: part * found.low / found.seconds for name, part in parts.items()}

    def _front(self) -> tuple[tuple[str, float, float], ...]:
        points = sorted((e.seconds, e.memory.total, str(plan)) for plan, e in self._seen.items())
        front: list[tuple[str, float, float]] = []
        for seconds, memory, plan in points:
            if not front or memory < front[-1][2]:
                front.append((plan, seconds, memory))
        return tuple(front)


def _burden(name: str) -> tuple[bool, bool, bool]:
    """Rank caches by what they ask for: a calibration, a library, reuse of whole outputs."""
    one = registry.get(name)
    return bool(one.calibrate), bool(one.imports), one.around is not None


def _plain(stack: Stack) -> dict[str, dict[str, Any]]:
    return {name: dict(values) for name, values in stack.items()}


def _words(rests_on: str) -> str:
    return "the datasheet alone" if rests_on == "datasheet" else f"published rows of {rests_on}"


def _quality(stack: Stack) -> str:
    """Say what class of error the passes bring; the size of it is not predicted."""
    kinds = {registry.get(name).fidelity for name in stack}
    if Fidelity.DIVERGENT in kinds:
        return "another trajectory: unknown until measured"
    if Fidelity.APPROXIMATE in kinds:
        return "small errors on the same trajectory: unknown until measured"
    return "the same up to rounding"
