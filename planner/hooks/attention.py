"""The attention modules of a denoiser's blocks: which kind each is, and what reusing them saves.

Kinds are those of diffusers' Pyramid Attention Broadcast: temporal in the lists of temporal blocks;
cross where the module says so, or stands as attn2 beside an attn1; else spatial, joint attention
over image and text included. Source: diffusers.hooks.pyramid_attention_broadcast.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any, NamedTuple

from planner.case.case import Case
from planner.case.noun import Scalar
from planner.case.work import Operation, Phase, Work
from planner.hooks.blocks import denoisers_of
from planner.hooks.branches import PerBranch, Tally
from planner.hooks.clock import StepClock
from planner.hooks.modules import Place, kept_inside, places
from planner.hooks.reuse import Condition, long_enough

SPATIAL, CROSS, TEMPORAL = KINDS = ("spatial", "cross", "temporal")

Runs = Callable[[str, int, int], bool]
"""Tells whether attention of a kind runs at a step of a schedule of so many steps."""


def kind_of(listed: str, name: str, beside: Collection[str]) -> str:
    """Return the kind of an attention by its list, its name in its block, and those beside it."""
    if "temporal" in listed:
        return TEMPORAL
    return CROSS if "cross" in name or (name == "attn2" and "attn1" in beside) else SPATIAL


def attention_in(denoiser: Any) -> tuple[Place, ...]:
    """Return the blocks that hold attention, with the paths of the outermost ones.

    Raises `UsageError` for a denoiser without a block list that diffusers knows.
    """
    from diffusers.hooks._common import _ATTENTION_CLASSES

    def parts(_: str, block: Any) -> tuple[str, ...]:
        found: list[str] = []
        for path, module in block.named_modules():
            inside = any(path.startswith(f"{outer}.") for outer in found)
            if isinstance(module, _ATTENTION_CLASSES) and not inside:
                found.append(path)
        return tuple(found)

    return places(denoiser, parts)


def kinds_at(place: Place) -> tuple[str, ...]:
    """Return the kind of each attention of a place."""

    def kind(path: str) -> str:
        said = getattr(place.block.get_submodule(path), "is_cross_attention", False)
        found = kind_of(place.listed, path, place.parts)
        return CROSS if said and found == SPATIAL else found

    return tuple(kind(path) for path in place.parts)


def in_window(start: float, stop: float, step: int, total: int) -> bool:
    """Tell whether a step lies in [start, stop), shares of a schedule of `total` steps."""
    # A hair of tolerance: 0.3 * 10 is 3.0000000000000004 and 0.7 * 10 is 7.000000000000001.
    return start * total - 1e-9 <= step < stop * total - 1e-9


class Reuse(NamedTuple):
    """When attention runs, and what follows from its last outputs (so many, oldest first)."""

    runs: Runs
    outputs: int
    answer: Callable[[Sequence[Any], float], Any]
    """Takes the outputs and the share of the schedule that is over, 0 to 1."""


class _Outputs:
    """Keeps the last outputs of every attention and branch, as long as a step to come needs them.

    A module of which too few outputs are known runs whatever the schedule says.
    """

    def __init__(
        self, kinds: Sequence[Sequence[str]], reuse: Reuse, clock: StepClock, tally: Tally
    ) -> None:
        self._kinds, self._reuse, self._clock, self._tally = kinds, reuse, clock, tally
        self._branches: PerBranch[dict[tuple[int, int], list[Any]]] = PerBranch(dict, clock)
        self._outputs: dict[tuple[int, int], list[Any]] = {}
        self._runs: dict[str, bool] = {}
        self._last: dict[str, int] = {}

    def restart(self) -> None:
        """Forget the last call."""
        self._branches.clear()
        self._outputs, self._last = {}, {}
        self._tally.restart()

    def begin(self, branch: str, form: Any) -> None:
        """Look up which kinds run at this step, once a forward."""
        step, total, runs = self._clock.step, self._clock.total, self._reuse.runs
        self._outputs = self._branches.of(branch, form)
        self._runs = {kind: runs(kind, step, total) for kind in KINDS}
        if not self._last:
            left_out = {kind: [one for one in range(total) if not runs(kind, one, total)]
                        for kind in KINDS}  # fmt: skip
            self._last = {kind: max(steps, default=-1) for kind, steps in left_out.items()}
        answered = any(self._answers(key) for key in self._outputs)
        self._tally.add(branch, computed=not answered)

    def _answers(self, key: tuple[int, int]) -> bool:
        known = len(self._outputs.get(key, ()))
        return known == self._reuse.outputs and not self._runs[self._kinds[key[0]][key[1]]]

    def answers(self, place: int, args: Any, kwargs: Any) -> list[Any]:
        """Return what follows from the last outputs, None where a module runs."""
        return [self._answer((place, index)) for index in range(len(self._kinds[place]))]

    def _answer(self, key: tuple[int, int]) -> Any:
        if not self._answers(key):
            return None
        at = self._clock.step / max(1, self._clock.total - 1)
        given = self._reuse.answer(self._outputs[key], at)
        if self._is_over(key):
            del self._outputs[key]
        return given

    def _is_over(self, key: tuple[int, int]) -> bool:
        return self._clock.step >= self._last[self._kinds[key[0]][key[1]]]

    def keep(self, place: int, made: Sequence[Any]) -> None:
        """Keep what ran; the oldest output is dropped."""
        for index, output in enumerate(made):
            key = (place, index)
            if output is not None and not self._is_over(key):
                before = self._outputs.get(key, [])
                self._outputs[key] = [*before, output][-self._reuse.outputs :]


def reuse_attention(
    pipeline: Any, reuse: Reuse, clock: StepClock, statistics: dict[str, Scalar], name: str
) -> Callable[[], None]:
    """Reuse attention in every denoiser of a pipeline; returns the undo.

    `statistics` receive what `Tally` counts: a forward is reused where any attention of it is.
    """
    tally = Tally(statistics, clock)
    with ExitStack() as stack:
        for denoiser in denoisers_of(pipeline).values():
            found = attention_in(denoiser)
            outputs = _Outputs([kinds_at(place) for place in found], reuse, clock, tally)
            stack.callback(clock.on_reset(outputs.restart))
            stack.callback(kept_inside(denoiser, found, outputs, clock, name))
        return stack.pop_all().close


def attention_needs(name: str) -> tuple[tuple[Condition, str], ...]:
    """Return what reusing attention needs, each condition with its source."""
    return (
        (_known_attention(name), "diffusers.hooks.pyramid_attention_broadcast, its classes"),
        (long_enough(name), "interactions R14: step caches off at 8 steps and fewer"),
    )


def _known_attention(name: str) -> Condition:
    def _attention(case: Case) -> str | None:
        traits = case.model.traits
        if traits.attention:
            return None
        blocks = ", ".join(traits.block_classes) or f"the blocks of {traits.denoiser_class}"
        return f"{name} needs blocks with attention that diffusers knows; {blocks} have none"

    return _attention


def reusing_attention(work: Work, runs: Runs, copies: int = 1) -> Work:
    """Return the work whose attention runs at some steps, and that holds its outputs in between.

    `copies` outputs are kept of every module that is ever left out, for every branch. Two experts
    run their steps one after the other, and each keeps its own.
    """
    totals: dict[str | None, int] = {}
    for phase in work.phases:
        if phase.name == "denoise":
            totals[phase.branch] = totals.get(phase.branch, 0) + round(phase.calls)
    steps = {branch: iter(range(total)) for branch, total in totals.items()}
    held: list[float] = [work.kept]

    def changed(phase: Phase) -> Phase:
        if phase.name != "denoise" or not round(phase.calls):
            return phase
        mine, total = list(islice(steps[phase.branch], round(phase.calls))), totals[phase.branch]
        shares = {kind: _share(runs, kind, mine, total, copies) for kind in KINDS}
        of = {path: shares[kind] for path, kind in _kinds(phase).items() if shares[kind] < 1}
        held.append(copies * _outputs(phase, of))
        return phase.mapped(lambda op: op if op.path not in of else op.model_copy(
            update={"share": op.share * of[op.path]}
        ))  # fmt: skip

    after = work.mapped(changed)
    return after.model_copy(update={"kept": sum(held)})


def _share(runs: Runs, kind: str, steps: Collection[int], total: int, outputs: int) -> float:
    """Return the share of steps at which attention runs: also until enough outputs are known."""
    known = 0
    for step in steps:
        known += known < outputs or runs(kind, step, total)
    return known / len(steps)


def _kinds(phase: Phase) -> dict[str, str]:
    """Return the kind of every group of operations that is an attention module's."""
    inside = {op.path: op.path.split(".") for op in phase.operations if op.block}
    named = {path: parts for path, parts in inside.items()
             if len(parts) > 2 and _is_attention(parts[2])}  # fmt: skip
    beside: dict[str, set[str]] = {}
    for parts in named.values():
        beside.setdefault(".".join(parts[:2]), set()).add(parts[2])
    return {path: kind_of(parts[0], parts[2], beside[".".join(parts[:2])])
            for path, parts in named.items()}  # fmt: skip


def _is_attention(name: str) -> bool:
    return "norm" not in name and ("attn" in name or "attention" in name)


def _outputs(phase: Phase, paths: Collection[str]) -> float:
    """Return the bytes of what modules give: each as much as the largest attention's queries."""
    sizes = [op.bytes / max(1, op.launches) / 4 for op in _attention(phase)]
    return max(sizes, default=0.0) * sum(op.path in paths for op in _attention(phase))


def _attention(phase: Phase) -> Iterator[Operation]:
    return (op for op in phase.operations if op.block and op.kind == "attention")
