"""What every cache that skips whole steps needs of a case, and when it was inert."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from planner.case.case import Case
from planner.case.noun import Scalar
from planner.case.work import Operation, Phase, Work
from planner.hooks.branches import SINGLE

Masks = Sequence[Mapping[str, str]]

Condition = Callable[[Case], str | None]
"""Answers None, or a sentence that names need and value."""

FEW_STEPS = 8
"""At this many steps or fewer, neighbouring steps differ too much to stand in for each other."""

_ADDS_BETWEEN = ("ControlNet", "VACE", "Animate")
_READS_BETWEEN = ("Animate",)


def nothing_between(name: str) -> Condition:
    """Return the need that nothing is added between blocks: a skipped step would add it twice.

    Passes on `blocks.Stack` do not have it: what they keep is what the blocks alone have added.
    """
    needed = f"{name} needs an undisturbed block stack"

    def _undisturbed_block_stack(case: Case) -> str | None:
        return _found(_ADDS_BETWEEN, case, needed, "adds between blocks")

    return _undisturbed_block_stack


def nothing_read_between(name: str) -> Condition:
    """Return the need that what is added between blocks does not depend on what they add.

    A skipped step adds what the whole stack has added at its beginning.
    """
    needed = f"{name} needs a block stack that is read at its end only"

    def _block_stack_read_at_its_end(case: Case) -> str | None:
        return _found(_READS_BETWEEN, case, needed, "reads it between blocks")

    return _block_stack_read_at_its_end


def _found(words: tuple[str, ...], case: Case, needed: str, does: str) -> str | None:
    kind = f"{case.model.pipeline} {case.model.traits.denoiser_class}"
    word = next((word for word in words if word in kind), None)
    return None if word is None else f"{needed}; {word} {does}"


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
"""What a residual of the whole stack does to a skipped step where something is added between."""

READ = "diffusers WanAnimateTransformer3DModel.forward: face_adapter(hidden_states, motion_vec)"
"""Where what is added between blocks depends on them."""


def whole_steps(name: str) -> tuple[tuple[Condition, str], ...]:
    """Return what skipping the whole block stack needs, each condition with its source."""
    return (
        (known_blocks(name), "diffusers.hooks TransformerBlockRegistry"),
        (nothing_read_between(name), READ),
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


def skipping_forwards(work: Work, share_of: Callable[[Phase], float | None]) -> Work:
    """Return the work whose denoiser is called at a share of each denoise phase's calls.

    What is kept is as small as the latents and not counted.
    """

    def skipped(phase: Phase) -> Phase:
        share = share_of(phase) if phase.name == "denoise" else None
        return phase if share is None else phase.model_copy(update={"calls": phase.calls * share})

    return work.mapped(skipped)


def steps_of(work: Work) -> int:
    """Return the steps of a call: the most calls of one branch, of two experts together."""
    branches: dict[str | None, float] = {}
    for phase in work.phases:
        if phase.name == "denoise":
            branches[phase.branch] = branches.get(phase.branch, 0.0) + phase.calls
    return round(max(branches.values(), default=0.0))


def computed_share(masks: Masks) -> Callable[[Phase], float | None]:
    """Return what tells for a phase which share of its branch's steps the masks compute."""

    def share(phase: Phase) -> float | None:
        branch = phase.branch or SINGLE
        mine = [mask for run in masks for name, mask in run.items() if name == branch]
        if not mine:
            return None
        return sum(mask.count("1") for mask in mine) / sum(map(len, mine))

    return share


def with_residuals(work: Work, copies: float = 1, more: float = 0) -> Work:
    """Return the work holding `copies` of what the block stack adds, for every branch.

    Each block list adds one tensor as large as the queries of its attention; `more` such tensors
    are held besides, however many lists there are. Two experts hold theirs one after the other.
    """
    branches: dict[str | None, float] = {}
    for phase in work.phases:
        if phase.name == "denoise":
            held = (copies * len(block_lists(phase)) + more) * _stream(phase)
            branches[phase.branch] = max(held, branches.get(phase.branch, 0.0))
    return work.model_copy(update={"kept": work.kept + sum(branches.values())})


Place = tuple[str, ...]
"""A block's list and number in it."""


def place_of(op: Operation) -> Place:
    """Return the block that an operation inside the stack belongs to."""
    return tuple(op.path.split(".")[:2])


def block_lists(phase: Phase) -> list[tuple[Place, ...]]:
    """Return the blocks of every block list of a phase, in calling order."""
    found: dict[str, list[Place]] = {}
    for place in dict.fromkeys(place_of(op) for op in phase.operations if op.block):
        found.setdefault(place[0], []).append(place)
    return [tuple(blocks) for blocks in found.values()]


def _stream(phase: Phase) -> float:
    """Return the bytes of the tokens that blocks work on: attention moves four times as much."""
    inside = [op for op in phase.operations if op.block and op.kind == "attention"]
    return max((op.bytes / max(1, op.launches) for op in inside), default=0.0) / 4


def reused_none(
    name: str, value: float, statistics: Mapping[str, Scalar], setting: str = "threshold"
) -> str | None:
    """Answer a sentence if the counters say that nothing was reused, with the setting's value."""
    if statistics.get("reused"):
        return None
    computed = statistics.get("computed", 0)
    return f"{name} reused none of {computed} forwards at {setting} {value:g}"


def informative(
    computed: Callable[[float], float], low: float, high: float
) -> tuple[float, float] | None:
    """Return the thresholds between which a cache changes what it computes.

    `computed` says how many steps a threshold computes, fewer for larger ones. From the largest
    that skips nothing to the smallest after which nothing more is skipped; None if that is none.
    """
    count, ratio = 120, (high / low) ** (1 / 120)
    tried = [min(high, low * ratio**index) for index in range(count + 1)]
    seen = [computed(one) for one in tried]
    if seen[0] == seen[-1]:
        return None
    first = next(i for i, one in enumerate(seen) if one < seen[0])
    last = next(i for i, one in enumerate(seen) if one == seen[-1])
    return tried[max(0, first - 1)], tried[last]
