"""Rules about whole plans: what needs, claims and pairwise clashes cannot say.

A rule sees the case and the stack (every pass with its parsed settings, in order) and answers
None or one sentence. Rules speak of claims, stages and call arguments, never of a pass by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, NamedTuple

from planner.case.case import Case
from planner.case.noun import Scalar
from planner.hooks.reuse import FEW_STEPS
from planner.passes.base import Family, Pass, Settings, Stage, nothing

Verdict = Literal["breaks", "slower", "risky"]

STEP_REUSE = "step_reuse"
"""The claim of passes that compute some steps and reuse their results in others."""


ATTENTION_REUSE = "attention_reuse"
"""The claim of passes that run attention at some steps and reuse its outputs in others."""


MODULATION = "modulation"
"""The claim of passes that look at the conditioning and reuse what followed from it before."""


BRANCH_REUSE = "branch_reuse"
"""The claim of passes that compute one branch of guidance at some steps only."""

CAPTURE = "capture"
"""The claim of passes that record what a forward launches, and replay it."""

PLACE = "place"
"""The claim of passes that move weights between host and device."""


class Planned(NamedTuple):
    """A pass with its settings parsed."""

    pass_: Pass
    settings: Settings


Stack = Sequence[Planned]


class Rule(NamedTuple):
    """A condition on whole plans; only the verdict « breaks » forbids, others are advice."""

    name: str
    answer: Callable[[Case, Stack], str | None]
    source: str
    verdict: Verdict = "breaks"


class Apart(NamedTuple):
    """Two claims that no plan may hold together, and why, about the passes that hold them."""

    one: str
    other: str
    because: str
    source: str

    def said_of(self, a: Pass, b: Pass) -> str | None:
        """Return the sentence where one pass holds one claim and the other pass the other."""
        for first, second in ((a, b), (b, a)):
            if _claims(first, self.one) and _claims(second, self.other):
                return self.because.format(first.name, second.name)
        return None


APART = (
    Apart(
        ATTENTION_REUSE, STEP_REUSE,
        "{0} counts on attention that {1} does not run at the steps it skips, and {1} would keep "
        "what reused attention added: one cache a denoiser",
        "diffusers CacheMixin.enable_cache and TensorRT-LLM VisualGen take one cache at a time",
    ),
)  # fmt: skip


def effective_call(case: Case, stack: Stack) -> dict[str, Scalar]:
    """Return the pipeline call's keyword arguments under this stack."""
    call = dict(case.workload.call)
    for one in stack:
        call |= _call(case, one)
    return call


def missing_libraries(one: Pass, case: Case) -> tuple[str, ...]:
    """Return one sentence for every library that the pass imports and that is not there.

    What the case's device says about a library wins over what is installed here.
    """
    from packaging.requirements import Requirement

    said = []
    for text in one.imports:
        wanted = Requirement(text)
        found = case.device.libraries.get(wanted.name) or _installed(wanted.name)
        if found is None:
            said.append(f"{wanted.name} is not installed: pip install '{text}'")
        elif not wanted.specifier.contains(found, prereleases=True):
            said.append(f"{wanted.name} is {found}, but needed is {text}: pip install '{text}'")
    return tuple(said)


def _call(case: Case, one: Planned) -> dict[str, Scalar]:
    return {} if one.pass_.call is None else one.pass_.call(one.settings, case.workload)


def _installed(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _names(stack: Stack, holds: Callable[[Pass], bool]) -> list[str]:
    return [one.pass_.name for one in stack if holds(one.pass_)]


def _claims(one: Pass, what: str, whose: str = "") -> bool:
    """Tell whether a pass owns this of anything, or of one component."""
    return any(claim.endswith(f"{whose}.{what}") for claim in one.owns)


def _reuses_steps(one: Pass) -> bool:
    return _claims(one, STEP_REUSE)


def _reuses(one: Pass) -> bool:
    return _reuses_steps(one) or _claims(one, ATTENTION_REUSE)


def _decides(one: Pass) -> bool:
    """Tell whether a pass decides on the host, inside a forward, what of it runs."""
    return _reuses(one) or _claims(one, MODULATION)


def _inside(stack: Stack) -> Stack:
    """Return the passes that do not decide around the denoiser's forward."""
    return [one for one in stack if not (one.pass_.around and one.pass_.around(one.settings))]


def _unfit(case: Case, stack: Stack) -> str | None:
    workload = case.workload.model_copy(update={"call": effective_call(case, stack)})
    planned = case.model_copy(update={"workload": workload})
    asked = (one.pass_.unfit and one.pass_.unfit(planned, one.settings) for one in stack)
    return next((said for said in asked if said), None)


def _captured_decision(case: Case, stack: Stack) -> str | None:
    del case
    caches = _names(_inside(stack), _decides)
    graphs = _names(stack, lambda one: _claims(one, CAPTURE))
    if not caches or not graphs:
        return None
    return f"{graphs[0]} would replay what {caches[0]} decided at the first step; keep one"


def _gaps_beneath(case: Case, stack: Stack) -> str | None:
    del case
    spared = _names(stack, lambda one: _claims(one, BRANCH_REUSE))
    caches = _names(_inside(stack), _reuses_steps)
    if not spared or not caches:
        return None
    return (f"{caches[0]} begins anew after every step at which {spared[0]} leaves a branch out; "
            "keep one, or a cache that forecasts the denoiser's output")  # fmt: skip


def _captured_move(case: Case, stack: Stack) -> str | None:
    del case
    movers = _names(stack, lambda one: _claims(one, PLACE, "denoiser"))
    graphs = _names(stack, lambda one: _claims(one, CAPTURE))
    if not movers or not graphs:
        return None
    return f"{graphs[0]} reads weights where they were recorded, and {movers[0]} moves them"


def _empty_stretch(case: Case, stack: Stack) -> str | None:
    del case
    for one in stack:
        start: Any = getattr(one.settings, "start", None)
        stop: Any = getattr(one.settings, "stop", None)
        if start is not None and stop is not None and start >= stop:
            return f"{one.pass_.name} covers no step from start {start:g} to stop {stop:g}"
    return None


def _changes_nothing(case: Case, stack: Stack) -> str | None:
    for one in stack:
        call = _call(case, one)
        same = all(case.workload.call.get(key, _UNSET) == value for key, value in call.items())
        if call and same and one.pass_.apply is nothing:
            asked = ", ".join(f"{key} = {value}" for key, value in call.items())
            return f"{one.pass_.name} changes nothing, since the reference call has {asked} already"
    return None


_UNSET = object()


def _reuse_at_few_steps(case: Case, stack: Stack) -> str | None:
    caches = _names(stack, lambda one: _reuses(one) or _claims(one, BRANCH_REUSE))
    steps = effective_call(case, stack).get("num_inference_steps")
    if caches and isinstance(steps, int) and steps <= FEW_STEPS:
        return (
            f"{caches[0]} finds nothing to reuse in {steps} steps; give it {FEW_STEPS + 1} or more"
        )
    return None


def _more_steps(case: Case, stack: Stack) -> str | None:
    steps = effective_call(case, stack).get("num_inference_steps")
    if isinstance(steps, int) and steps > case.workload.steps:
        return f"{steps} steps are slower than the reference's {case.workload.steps}"
    return None


def _reuse_attention_compile(case: Case, stack: Stack) -> str | None:
    del case
    caches = _names(stack, _reuses_steps)
    attention = _names(stack, lambda one: one.family is Family.ATTENTION)
    compiled = _names(stack, lambda one: one.stage is Stage.COMPILE)
    if caches and attention and compiled:
        trio = f"{caches[0]}, {attention[0]} and {compiled[0]}"
        return f"{trio} may be slower together than any two of them; measure the pairs first"
    return None


def _quantized_without_compile(case: Case, stack: Stack) -> str | None:
    quantized = _names(stack, lambda one: one.stage is Stage.QUANTIZE)
    compiled = _names(stack, lambda one: one.stage is Stage.COMPILE)
    if case.device.kind != "cuda" or not quantized or compiled:
        return None
    return f"{quantized[0]} without compilation may be slower than no quantization on CUDA"


RULES = (
    Rule(
        "unfit settings",
        _unfit,
        "the pass itself, asked about its settings in this case",
    ),
    Rule(
        "a decision in a captured graph",
        _captured_decision,
        "TensorRT-LLM keeps TeaCache outside the graph: a skipped forward is no replay",
    ),
    Rule(
        "gaps beneath a cache of blocks",
        _gaps_beneath,
        "planner.hooks.branches: what a branch kept is dropped where it was not called for a step",
    ),
    Rule(
        "moved weights in a captured graph",
        _captured_move,
        "PyTorch docs, CUDA graphs: a replay reads and writes the recorded addresses",
    ),
    Rule(
        "empty stretch",
        _empty_stretch,
        "start and stop are fractions of the schedule, the first inside and the second outside",
    ),
    Rule(
        "changes nothing",
        _changes_nothing,
        "the workload's reference call, against which every plan is measured",
    ),
    Rule(
        "reuse at few steps",
        _reuse_at_few_steps,
        "Flow-Factory PR#196, EasyCache#16, TeaCache#6: step caches never trigger at 8 steps",
    ),
    Rule(
        "more steps than the reference",
        _more_steps,
        "distance is measured to the reference's own images",
        "slower",
    ),
    Rule(
        "quantized without compilation",
        _quantized_without_compile,
        "torchao: dynamic quantization pays for its scales only in fused kernels",
        "slower",
    ),
    Rule(
        "reuse, attention and compile",
        _reuse_attention_compile,
        "sglang#19471: 247 s with two of them, 337 s with all three on one H20",
        "slower",
    ),
)  # fmt: skip
