"""What every cache that skips whole steps needs of a case, and when it was inert."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from planner.case.case import Case
from planner.case.noun import Scalar
from planner.case.work import Phase, Work

Condition = Callable[[Case], str | None]
"""Answers None, or a sentence that names need and value."""

FEW_STEPS = 8
"""At this many steps or fewer, neighbouring steps differ too much to stand in for each other."""

_ADDS_BETWEEN = ("ControlNet", "VACE", "Animate")


def nothing_between(name: str) -> Condition:
    """Return the need that nothing is added between blocks: a skipped step would add it twice."""

    def _nothing_between(case: Case) -> str | None:
        added = [word for word in _ADDS_BETWEEN if word in case.model.pipeline]
        if not added:
            return None
        return f"{name} needs an undisturbed block stack; {added[0]} adds between blocks"

    return _nothing_between


def known_blocks(name: str) -> Condition:
    """Return the need of blocks whose streams diffusers has registered."""

    def _known_blocks(case: Case) -> str | None:
        traits = case.model.traits
        if traits.skippable:
            return None
        found = ", ".join(traits.block_classes)
        had = f"{found} are not" if found else f"{traits.denoiser_class} has none"
        return f"{name} needs blocks that diffusers has registered; {had}"

    return _known_blocks


def long_enough(name: str) -> Condition:
    """Return the need of more than `FEW_STEPS` steps in the reference call."""

    def _long_enough(case: Case) -> str | None:
        steps = case.workload.steps
        if steps > FEW_STEPS:
            return None
        return f"{name} needs at least {FEW_STEPS + 1} steps; this call has {steps}"

    return _long_enough


DISTURBED = "measured: relative error 0.26 on a Flux with ControlNet samples"
"""What adding between blocks does to a skipped step."""


def whole_steps(name: str) -> tuple[tuple[Condition, str], ...]:
    """Return what skipping the whole block stack needs, each condition with its source."""
    return (
        (known_blocks(name), "diffusers.hooks TransformerBlockRegistry"),
        (nothing_between(name), DISTURBED),
        (long_enough(name), "interactions R14: step caches off at 8 steps and fewer"),
    )


def skipping_steps(
    work: Work, share_of: Callable[[Phase], float | None], copies: int = 1
) -> Work:
    """Return the work whose block stack runs at a share of each denoise phase's calls.

    A phase whose share is None runs as before. `copies` as in `with_residuals`.
    """

    def skipped(phase: Phase) -> Phase:
        share = share_of(phase) if phase.name == "denoise" else None
        if share is None:
            return phase
        return phase.mapped(
            lambda op: op.model_copy(update={"share": op.share * share}) if op.block else op
        )

    return with_residuals(work.mapped(skipped), copies)


def with_residuals(work: Work, copies: int = 1) -> Work:
    """Return the work holding `copies` of what the block stack adds, for every branch.

    Each block list adds one tensor as large as the queries of its attention. Two experts hold
    theirs one after the other.
    """
    branches: dict[str | None, float] = {}
    for phase in work.phases:
        if phase.name == "denoise":
            held = copies * _residual(phase)
            branches[phase.branch] = max(held, branches.get(phase.branch, 0.0))
    return work.model_copy(update={"kept": work.kept + sum(branches.values())})


def _residual(phase: Phase) -> float:
    """Return the bytes of what a phase's block lists add: attention moves four times as much."""
    inside = [op for op in phase.operations if op.block]
    each = (op.bytes / max(1, op.launches) for op in inside if op.kind == "attention")
    lists = {op.path.partition(".")[0] for op in inside}
    return len(lists) * max(each, default=0.0) / 4


def reused_none(
    name: str, value: float, statistics: Mapping[str, Scalar], setting: str = "threshold"
) -> str | None:
    """Answer a sentence if the counters say that nothing was reused, with the setting's value."""
    if statistics.get("reused"):
        return None
    computed = statistics.get("computed", 0)
    return f"{name} reused none of {computed} forwards at {setting} {value:g}"
