"""Compute the unconditional branch every few steps; in between, keep its distance to the other.

What it does: guidance runs the denoiser for the prompt and without it. What the two differ by
changes slowly, so that at most steps the unconditional output is the conditional one of this very
step plus the difference as it was last seen, or on a straight line through the last two. Where
both branches run in one forward, the half without the prompt is left out of it.
When it helps: true classifier-free guidance, sequential or batched; long schedules. It stands
inside a cache of the denoiser's output: of the steps that are computed, some need one branch only.
What it costs: one or two outputs of memory; nothing is calibrated, nothing compared.
When not: 8 steps or fewer; guidance that is embedded or switched off; a cache of the block stack,
which begins anew after every spared step; very high guidance scales, which multiply the error.
Source: FasterCache (Lv et al. 2024, arXiv 2410.19355), its CFG-Cache; the forecast of the
difference stands in for its weighted frequencies.
"""

from __future__ import annotations

from typing import Any

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.case.work import Operation, Phase, Work
from planner.case.workload import Workload
from planner.hooks.blocks import denoiser_of
from planner.hooks.branches import Tally
from planner.hooks.clock import StepClock
from planner.hooks.forecast import History
from planner.hooks.reuse import long_enough, reused_none
from planner.hooks.whole import Output, Run, Whole, form_of, latents_of
from planner.passes.base import (
    Context,
    Family,
    Fidelity,
    Need,
    Pass,
    Settings,
    Stage,
    Statistics,
    Undo,
    knob,
)
from planner.passes.needs import one_denoiser

COND, UNCOND = "cond", "uncond"


class UncondCacheSettings(Settings):
    """How often the unconditional branch runs, how it is forecast, and from where on."""

    interval: int = knob(2, "every how many computed steps the branch runs", low=2, high=8, step=1,
                         least=1, most=1000)  # fmt: skip
    first: int = knob(3, "computed steps at the start at which it always runs", low=1, high=10,
                      step=1, least=1, most=1000)  # fmt: skip
    order: int = knob(1, "order of the difference's forecast", choices=(0, 1), least=0, most=1)


def runs(settings: UncondCacheSettings, computed: int) -> bool:
    """Tell whether the branch runs at the so-manieth computed step, counted from nought."""
    return computed < settings.first or (computed - settings.first + 1) % settings.interval == 0


class _UncondCache:
    """Stands around the denoiser; counts the steps at which the conditional branch really runs."""

    def __init__(self, settings: UncondCacheSettings, context: Context) -> None:
        self._settings, self._clock = settings, context.clock
        self._tally = Tally(context.statistics, context.clock)
        self.restart()

    def restart(self) -> None:
        """Forget the last call."""
        self._steps: list[int] = []
        self._cond: tuple[int, Output | None] = (-1, None)
        self._apart = History(self._settings.order)
        self._tally.restart()

    def _spared(self, clock: StepClock) -> bool:
        """Tell whether the branch is left out at this step."""
        if clock.step not in self._steps[-1:]:
            self._steps.append(clock.step)
        return bool(self._apart) and not runs(self._settings, len(self._steps) - 1)

    def _expected(self, cond: Output) -> list[Any]:
        apart = self._apart.at(self._clock.place)
        return [one + other for one, other in zip(cond.tensors, apart, strict=True)]

    def _learn(self, cond: Output, uncond: Output) -> None:
        pairs = zip(uncond.tensors, cond.tensors, strict=True)
        self._apart.keep(self._clock.place, [one - other for one, other in pairs])


class _Sequential(_UncondCache):
    """The branches come one after the other, each under its name."""

    def around(self, branch: str, run: Run, args: Any, kwargs: Any) -> Any:
        """Run the denoiser, or return what is expected of the unconditional branch."""
        step, (last, cond) = self._clock.step, self._cond
        if not self._clock.running or branch not in (COND, UNCOND):
            return run(*args, **kwargs)
        if branch == COND or cond is None or last != step:
            output = run(*args, **kwargs)
            if branch == COND:
                self._cond = step, Output.of(output)
            return output
        spared = self._spared(self._clock)
        self._tally.add(branch, computed=not spared)
        if spared:
            return cond.packed(self._expected(cond))
        output = run(*args, **kwargs)
        self._learn(cond, Output.of(output))
        return output


class _Batched(_UncondCache):
    """Both branches come in one forward, the unconditional half first.

    Guidance gives both halves the same latents. A batch without such halves has other parts (none
    where guidance is off, from the start or at a step, a third where it is perturbed) and is left
    alone. That is looked at once a call and form, since a GPU must be waited for.
    """

    def restart(self) -> None:
        """Forget the last call."""
        super().restart()
        self._form: tuple[Any, ...] | None = None
        self._halves = False

    def _is_guided(self, args: Any, kwargs: Any) -> bool:
        form = form_of(args, kwargs)
        if form != self._form:
            self._form, self._apart = form, History(self._settings.order)
            self._halves = _has_halves(latents_of(args, kwargs))
        return self._halves

    def around(self, branch: str, run: Run, args: Any, kwargs: Any) -> Any:
        """Run the denoiser on both halves, or on the conditional one alone."""
        if not self._clock.running or not self._is_guided(args, kwargs):
            return run(*args, **kwargs)
        size = latents_of(args, kwargs).shape[0]
        spared = self._spared(self._clock)
        self._tally.add(UNCOND, computed=not spared)
        if not spared:
            output = run(*args, **kwargs)
            both = Output.of(output)
            self._learn(*(Output([one.chunk(2)[half] for one in both.tensors], both.packing)
                          for half in (1, 0)))  # fmt: skip
            return output
        args, kwargs = _second_half((args, kwargs), size)
        cond = Output.of(run(*args, **kwargs))
        pairs = zip(self._expected(cond), cond.tensors, strict=True)
        import torch

        return cond.packed([torch.cat(pair) for pair in pairs])


def _has_halves(latents: Any) -> bool:
    """Tell whether a batch of latents is one half twice."""
    import torch

    if not hasattr(latents, "shape") or latents.shape[0] % 2:
        return False
    return torch.equal(*latents.chunk(2))


def _second_half(arguments: Any, size: int) -> Any:
    """Return arguments with every tensor of this batch size cut to its second half."""
    from torch.utils._pytree import tree_map

    def half(leaf: Any) -> Any:
        batched = hasattr(leaf, "shape") and len(leaf.shape) > 0 and leaf.shape[0] == size
        return leaf[size // 2 :] if batched else leaf

    return tree_map(half, arguments)


def apply(pipeline: Any, settings: UncondCacheSettings, context: Context) -> Undo:
    """Put the rule around the denoiser, beneath caches of whole steps."""
    batched = context.case.workload.guidance == "batched"
    rule = (_Batched if batched else _Sequential)(settings, context)
    stop = context.clock.on_reset(rule.restart)
    whole = Whole(denoiser_of(pipeline), rule, context.clock, "planner_uncond_cache")

    def undo() -> None:
        whole.detach()
        stop()

    return undo


def effect(work: Work, settings: UncondCacheSettings, telemetry: Telemetry | None) -> Work:
    """Lower the calls of the unconditional branch; half the forward where both run in one."""
    del telemetry

    def spared(phase: Phase) -> Phase:
        steps = round(phase.calls)
        if phase.name != "denoise" or not steps:
            return phase
        share = sum(runs(settings, step) for step in range(steps)) / steps
        if phase.branch == UNCOND:
            return phase.model_copy(update={"calls": phase.calls * share})
        return phase if phase.branch == COND else phase.mapped(lambda op: _halved(op, share))

    return work.mapped(spared)


def _halved(operation: Operation, share: float) -> Operation:
    """Return an operation on a batch of which half is left out, save at this share of calls."""
    return operation.model_copy(update={"share": operation.share * (1 + share) / 2})


def observe(
    settings: UncondCacheSettings, statistics: Statistics, workload: Workload
) -> str | None:
    """Answer a sentence if the branch ran at every step."""
    return reused_none("uncond_cache", settings.interval, statistics, "interval")


_PROMPT_FIRST = ("AceStep", "DiTPipeline", "Lumina", "OmniGen", "StableCascade", "ZImage")
"""How pipelines begin whose batch has the prompt's half first, or is no tensor."""


def _two_branches(case: Case) -> str | None:
    guidance, branches = case.workload.guidance, case.model.traits.branches
    if guidance == "batched" and case.model.pipeline.startswith(_PROMPT_FIRST):
        said = "uncond_cache needs the half without the prompt first in the batch"
        return f"{said}; {case.model.pipeline} has it last"
    if guidance == "batched":
        return None
    if guidance != "sequential":
        return f"uncond_cache needs true guidance; this call's is {guidance}"
    if branches[:2] == (COND, UNCOND):
        return None
    named = ", ".join(branches) or "nothing"
    return f"uncond_cache needs branches named cond and uncond in this order; this has {named}"


_SOURCE = "Lv et al. 2024, arXiv 2410.19355"

PASS = Pass(
    name="uncond_cache",
    family=Family.CACHING,
    # Beneath caches of whole steps, which are put on later: it is asked at computed steps only.
    stage=Stage.SAMPLING,
    fidelity=Fidelity.APPROXIMATE,
    source=_SOURCE,
    settings=UncondCacheSettings,
    owns=("denoiser.branch_reuse",),
    needs=(
        Need(_two_branches, _SOURCE),
        Need(long_enough("uncond_cache"), "interactions R14: caches off at 8 steps and fewer"),
        one_denoiser("uncond_cache"),
    ),
    effect=effect,
    apply=apply,
    observe=observe,
    around=lambda settings: True,
    seeds=({"interval": 2}, {"interval": 4, "first": 4}),
    batch_invariant=True,
)
