"""Skip the whole denoiser while its output has hardly moved, by a rate measured as it runs.

What it does: at computed steps it measures how much the output changes for a change of the latents.
At the others the latents' change times that rate, relative to the output, is added up; below the
threshold the denoiser is not called, and the latents plus what it last added to them stand in for
its output. The first branch of a step decides for the others: guidance mixes branches, which
must be of one age. The first and the last step always run, and so do those before `start`.
When it helps: long schedules of any denoiser whose output has the shape of its latents, with or
without known blocks, U-Nets too; nothing is calibrated.
What it costs: one scalar read a step; a branch keeps up to four latents and two outputs.
When not: 8 steps or fewer; inputs with more channels than the output (image-to-video, inpainting);
prompts whose layout settles late.
Source: EasyCache (Zhou et al. 2025, arXiv 2507.02860).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from planner.case.case import Case
from planner.case.telemetry import Series, Telemetry
from planner.case.work import Work
from planner.case.workload import Workload
from planner.hooks.blocks import denoiser_of
from planner.hooks.branches import PerBranch, Tally
from planner.hooks.gate import Gate, pinned
from planner.hooks.reuse import (
    computed_share,
    long_enough,
    reused_none,
    skipping_forwards,
    steps_of,
)
from planner.hooks.whole import Output, Run, Whole, form_of, latents_of, tensors_of
from planner.passes.base import (
    Context,
    Domain,
    Family,
    Fidelity,
    Masks,
    Need,
    Pass,
    Settings,
    Stage,
    Statistics,
    Undo,
    knob,
)
from planner.passes.needs import narrowed, one_denoiser


class EasyCacheSettings(Settings):
    """How far the output may be thought to have moved, and from where on."""

    threshold: float = knob(
        0.05, "gathered relative change of the output at which the denoiser runs again",
        low=0.01, high=1.0, log=True, least=0.0, most=100.0,
    )  # fmt: skip
    start: float = knob(
        0.2, "share of the schedule before which every step is computed", low=0.0, high=0.4,
        step=0.05, least=0.0, most=1.0,
    )  # fmt: skip


class _Ruler(Protocol):
    """Mean absolute differences between steps."""

    def latents(self, now: int, before: int) -> float:
        """Return how far the latents of two steps are apart."""

    def output(self, now: int, before: int) -> float:
        """Return how far the outputs of two computed steps are apart."""

    def size(self, step: int) -> float:
        """Return the mean absolute output of a computed step."""


class _Rate:
    """The rule of the paper over the steps of one call, whoever measures the differences."""

    def __init__(self, settings: EasyCacheSettings) -> None:
        self._settings, self._gate = settings, Gate(settings.threshold)
        self._computed: list[int] = []
        self._rate: float | None = None

    def skips(self, step: int, total: int, ruler: _Ruler) -> bool:
        """Tell whether a step is skipped; to be asked for every step in order."""
        held = self._rate is None or pinned(step, total, self._settings.start)
        change = 0.0
        if not held and self._rate is not None:
            size = ruler.size(self._computed[-1])
            moved = self._rate * ruler.latents(step, step - 1)
            change = moved / size if size > 0 else float("inf")
        return self._gate.skips(change, held)

    def computed(self, step: int, ruler: _Ruler) -> None:
        """Measure the rate anew at a step that was computed."""
        if self._computed:
            before = self._computed[-1]
            apart = ruler.latents(step, before)
            self._rate = ruler.output(step, before) / apart if apart > 0 else float("inf")
        self._computed = [*self._computed[-1:], step]


class _Kept(NamedTuple):
    """Latents and output of one step; None where the denoiser did not run."""

    latents: list[Any]
    output: list[Any] | None


class _Branch:
    """One branch: the last step, and the last two computed ones, by their numbers."""

    def __init__(self) -> None:
        self.steps: dict[int, _Kept] = {}
        self.added: list[Any] = []
        self.packing: Output | None = None

    def latents(self, now: int, before: int) -> float:
        return _apart(self.steps[now].latents, self.steps[before].latents)

    def output(self, now: int, before: int) -> float:
        return _apart(self.steps[now].output or [], self.steps[before].output or [])

    def size(self, step: int) -> float:
        return _apart(self.steps[step].output or [], None)

    def keep(self, step: int, kept: _Kept) -> None:
        """Keep a step, and forget all but the one before and the last two computed ones."""
        self.steps[step] = kept
        ran = [one for one, seen in sorted(self.steps.items()) if seen.output is not None]
        wanted = {step - 1, step, *ran[-2:]}
        self.steps = {one: seen for one, seen in self.steps.items() if one in wanted}


def _apart(tensors: list[Any], others: list[Any] | None) -> float:
    """Return the mean absolute difference of nests of tensors, or the size of one."""
    total = count = 0.0
    for index, tensor in enumerate(tensors):
        apart = tensor if others is None else tensor - others[index]
        total += float(apart.abs().sum())
        count += apart.numel()
    return total / max(1.0, count)


class _EasyCache:
    """Stands in for the denoiser where the first branch of a step says so."""

    def __init__(self, settings: EasyCacheSettings, context: Context) -> None:
        self._settings, self._clock = settings, context.clock
        self._branches = PerBranch(_Branch, context.clock)
        self._tally = Tally(context.statistics, context.clock)
        self.restart()

    def restart(self) -> None:
        """Forget the last call."""
        self._rate, self._leader, self._decided = _Rate(self._settings), "", (-1, False)
        self._branches.clear()
        self._tally.restart()

    def around(self, branch: str, run: Run, args: Any, kwargs: Any) -> Any:
        """Return latents plus what was last added to them, or run the denoiser."""
        if not self._clock.running:  # nobody says where a call begins: nothing is safe to reuse
            return run(*args, **kwargs)
        step, state = self._clock.step, self._branches.of(branch, form_of(args, kwargs))
        latents = tensors_of(latents_of(args, kwargs))
        state.keep(step, _Kept(latents, None))
        self._leader = self._leader or branch
        if branch == self._leader and self._decided[0] != step:
            self._decided = step, self._decide(step, state)
        skipped = self._decided == (step, True) and state.packing is not None
        self._tally.add(branch, computed=not skipped)
        if skipped and state.packing is not None:
            pairs = zip(latents, state.added, strict=True)
            return state.packing.packed([now + added for now, added in pairs])
        output = run(*args, **kwargs)
        self._keep(branch, latents, output)
        return output

    def _decide(self, step: int, state: _Branch) -> bool:
        if step and step - 1 not in state.steps:  # it resumes after steps without a call
            self._rate = _Rate(self._settings)
        return self._rate.skips(step, self._clock.total, state)

    def _keep(self, branch: str, latents: list[Any], output: Any) -> None:
        """Keep what the denoiser returned, and what it added to its latents."""
        state, step = self._branches[branch], self._clock.step
        state.packing = Output.of(output)
        outputs = state.packing.tensors
        state.added = [one - given for one, given in zip(outputs, latents, strict=True)]
        state.keep(step, _Kept(latents, outputs))
        if branch == self._leader:
            self._rate.computed(step, state)


def apply(pipeline: Any, settings: EasyCacheSettings, context: Context) -> Undo:
    """Put the rule around the denoiser."""
    rule = _EasyCache(settings, context)
    stop = context.clock.on_reset(rule.restart)
    whole = Whole(denoiser_of(pipeline), rule, context.clock, "planner_easy_cache")

    def undo() -> None:
        whole.detach()
        stop()

    return undo


class _Recorded:
    """The differences that a recorded call shows."""

    def __init__(self, seen: dict[str, Series]) -> None:
        self._latents, self._output = seen["latents"], seen["output"]

    def latents(self, now: int, before: int) -> float:
        return self._latents.apart[now][before]

    def output(self, now: int, before: int) -> float:
        return self._output.apart[now][before]

    def size(self, step: int) -> float:
        return self._output.sizes[step]


def masks(settings: EasyCacheSettings, telemetry: Telemetry) -> Masks:
    """Return the steps that the rule would compute in the recorded calls."""
    found = []
    for run in telemetry.runs:
        rate, ruler, mask = _Rate(settings), _Recorded(next(iter(run.values()))), ""
        for step in range(telemetry.steps):
            skipped = rate.skips(step, telemetry.steps, ruler)
            mask += "01"[not skipped]
            if not skipped:
                rate.computed(step, ruler)
        found.append(dict.fromkeys(run, mask))
    return found


def effect(work: Work, settings: EasyCacheSettings, telemetry: Telemetry | None) -> Work:
    """Lower the calls of the denoiser to the simulated ones; without telemetry nothing."""
    if telemetry is None:
        return work
    found = masks(settings, telemetry.at(steps_of(work)))
    return skipping_forwards(work, computed_share(found))


def narrow(case: Case, telemetry: Telemetry | None) -> dict[str, Domain]:
    """Return the thresholds at which something changes in the recorded calls."""
    if telemetry is None:
        return {}
    return narrowed("threshold", telemetry.at(case.workload.steps), lambda value, seen: masks(
        EasyCacheSettings(threshold=value), seen))  # fmt: skip


def observe(settings: EasyCacheSettings, statistics: Statistics, workload: Workload) -> str | None:
    """Answer a sentence if nothing was reused."""
    return reused_none("easy_cache", settings.threshold, statistics)


def _output_of_the_shape_of_the_input(case: Case) -> str | None:
    more = case.model.traits.extra_channels
    if not more:
        return None
    side = "input" if more > 0 else "output"
    said = "easy_cache needs output and input of one shape"
    return f"{said}; this {side} has {abs(more)} more channels"


_SOURCE = "Zhou et al. 2025, arXiv 2507.02860"

PASS = Pass(
    name="easy_cache",
    family=Family.CACHING,
    stage=Stage.CACHE,
    fidelity=Fidelity.APPROXIMATE,
    source=_SOURCE,
    settings=EasyCacheSettings,
    owns=("denoiser.step_reuse",),
    needs=(
        Need(long_enough("easy_cache"), "interactions R14: step caches off at 8 steps and fewer"),
        Need(_output_of_the_shape_of_the_input, "EasyCache keeps output less latents"),
        one_denoiser("easy_cache"),
    ),
    effect=effect,
    masks=masks,
    apply=apply,
    observe=observe,
    narrow=narrow,
    around=lambda settings: True,
    seeds=({"threshold": 0.05}, {"threshold": 0.15}),
    batch_invariant=False,
)
