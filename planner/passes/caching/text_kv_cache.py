"""Make the text's keys and values once a call, where they are the same at every step.

What it does: keeps what the cross-attention's projections make of the text at the first step of
each branch, and hands it out at the others while text, weights and adapters are what they were. A
text that changes in the middle of a call is projected anew. The same tensors go in: images are
equal bit by bit.
When it helps: denoisers whose text neither timestep nor image touches, where texts are long and
images small. Of the denoiser's arithmetic it saves 0.04 (Sana), 0.01 (SDXL, PixArt-Sigma), and
next to nothing of a video's (LTX 0.002, Wan 0.0005).
What it costs: keys and values of every block in memory: 0.05 GB for SDXL, 0.8 GB for both branches
of Wan 14B. With compiled blocks a second graph.
When not: joint attention (FLUX, SD3, Qwen-Image), where every block changes the text; with CUDA
graphs. Under `torch.inference_mode` tensors do not count their changes, and nothing is kept.
Source: diffusers.hooks.text_kv_cache does so for NucleusMoE-Image alone, by the address of the
text; here the text itself is compared.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.case.work import Operation, Phase, Work
from planner.case.workload import Workload
from planner.errors import TrialFailed
from planner.hooks.beneath import beneath_hooks, own_forward
from planner.hooks.blocks import denoisers_of
from planner.hooks.branches import Hook, Order, Tally, attach
from planner.hooks.clock import StepClock
from planner.hooks.text import TEXT_ONLY, before_projections, is_text_only, text_projections
from planner.hooks.versions import Weights, version
from planner.passes.base import (
    Avoid,
    Context,
    Family,
    Fidelity,
    Need,
    NoSettings,
    Pass,
    Stage,
    Statistics,
    Undo,
)


class _Projection:
    """Stands in for a projection's forward: hands out what is kept, else computes.

    Compiled blocks trace it. As a bound method of one class it is the same code for all of them,
    so that they share two graphs: one that computes and one that does not.
    """

    def __init__(self, module: Any) -> None:
        self._forward = own_forward(module)
        self.kept: Any = None
        self.made: Any = None
        self.restore = beneath_hooks(module, self.run)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Return the projection of the text."""
        if self.kept is not None:
            return self.kept
        made = self._forward(*args, **kwargs)
        self.made = made.clone()  # what comes next may write into what it is given
        return made


class _Kept:
    """What the projections made of one text, in which state of it and of the weights."""

    def __init__(self, text: Any, weights: Any, count: int) -> None:
        self._text, self._version, self._weights = text, version(text), weights
        self.values: list[Any] = [None] * count
        self._versions = [0] * count

    def holds(self, text: Any, weights: Any) -> bool:
        """Tell whether this is the same text under the same weights, and nothing was written over.

        A pipeline that makes the same text anew at every step has it compared value by value.
        """
        changed = version(self._text) != self._version or weights != self._weights
        if changed or [_changes(value) for value in self.values] != self._versions:
            return False
        return text is self._text or _equal(text, self._text)

    def take(self, made: list[Any]) -> None:
        """Keep what was computed; a projection that did not run keeps what it had."""
        for place, value in enumerate(made):
            if value is not None:
                self.values[place], self._versions[place] = value, _changes(value)


def _changes(value: Any) -> int:
    return 0 if value is None else version(value)


def _scale(given: Mapping[str, Any]) -> Any:
    """Return the scale that a call gives its adapters, which is theirs during the forward alone."""
    found = given.get("attention_kwargs") or given.get("cross_attention_kwargs") or {}
    return found.get("scale")


def _counts_changes(text: Any) -> bool:
    import torch

    return isinstance(text, torch.Tensor) and not text.is_inference()


def _equal(one: Any, other: Any) -> bool:
    import torch

    alike = one.dtype == other.dtype and one.device == other.device
    return alike and torch.equal(one, other)


class _Text(Hook):
    """Sets, around a denoiser's forward, what its projections hand out."""

    def __init__(self, denoiser: Any, clock: StepClock, tally: Tally) -> None:
        super().__init__()
        modules = text_projections(denoiser)
        if not modules:
            kind = type(denoiser).__name__
            raise TrialFailed(f"text_kv_cache found no projection of the text in {kind}",
                              stage="apply", value=kind, way_out="leave the pass out")  # fmt: skip
        self._names = tuple(inspect.signature(type(denoiser).forward).parameters)[1:]
        self._clock, self._tally = clock, tally
        self._order = Order(clock)
        self._kept: dict[str, _Kept] = {}
        self._weights = Weights([*before_projections(denoiser), *modules])
        self._projections = [_Projection(module) for module in modules]

    def restart(self) -> None:
        """Forget the last call."""
        self._order.restart()
        self._kept.clear()

    def restore(self) -> None:
        """Let the projections be themselves again."""
        for one in reversed(self._projections):
            one.restore()

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        forward = self.fn_ref.original_forward
        given = dict(zip(self._names, args, strict=False)) | kwargs
        text = given.get("encoder_hidden_states")
        if not self._clock.running or not _counts_changes(text):
            return self._watched(forward, args, kwargs)[0]
        branch, weights = self._order.branch(self), (_scale(given), self._weights.state())
        kept = self._kept.get(branch)
        if kept is None or not kept.holds(text, weights):
            kept = self._kept[branch] = _Kept(text, weights, len(self._projections))
        for one, value in zip(self._projections, kept.values, strict=True):
            one.kept = value
        output, made = self._watched(forward, args, kwargs)
        kept.take(made)
        self._tally.add(branch, computed=any(value is not None for value in made))
        return output

    def _watched(self, forward: Any, args: Any, kwargs: Any) -> tuple[Any, list[Any]]:
        """Return a forward's output and what the projections computed in it, and forget both."""
        try:
            return forward(*args, **kwargs), [one.made for one in self._projections]
        finally:
            for one in self._projections:
                one.kept = one.made = None


def apply(pipeline: Any, settings: NoSettings, context: Context) -> Undo:
    """Put the cache on every denoiser. Raises `TrialFailed` where it finds nothing to keep."""
    clock, tally = context.clock, Tally(context.statistics, context.clock)
    undo = [clock.on_reset(tally.restart)]

    def take_off() -> None:
        while undo:
            undo.pop()()

    try:
        for denoiser in denoisers_of(pipeline).values():
            text = _Text(denoiser, clock, tally)
            undo.append(text.restore)
            undo.append(clock.on_reset(text.restart))
            undo.append(attach(denoiser, denoiser, text, "planner_text_kv_cache"))
    except BaseException:
        take_off()
        raise
    return take_off


def effect(work: Work, settings: NoSettings, telemetry: Telemetry | None) -> Work:
    """Run the text's projections once in all calls of a branch, and hold what they make."""

    def kept(phase: Phase) -> Phase:
        if phase.name != "denoise" or phase.calls <= 1:
            return phase
        return phase.mapped(
            lambda op: op.model_copy(update={"share": min(op.share, 1 / phase.calls)})
            if is_text_only(op.path) else op
        )  # fmt: skip

    held = sum(
        _made(op) for phase in work.phases if phase.name == "denoise" for op in phase.operations
    )
    return work.mapped(kept).model_copy(update={"kept": work.kept + held})


def _made(op: Operation) -> float:
    """Return the bytes that a projection makes: half of what it moves, for texts as wide."""
    made = op.kind == "linear" and is_text_only(op.path)
    return (op.bytes - op.weights) / 2 if made else 0.0


def observe(settings: NoSettings, statistics: Statistics, workload: Workload) -> str | None:
    """Answer a sentence if nothing was reused."""
    if statistics.get("reused"):
        return None
    return f"text_kv_cache reused none of {statistics.get('computed', 0)} forwards"


def _untouched_text(case: Case) -> str | None:
    found = case.model.traits.denoiser_class
    if found in TEXT_ONLY:
        return None
    return (
        "text_kv_cache needs a denoiser that is known to leave its text alone at every step "
        f"and in every block; {found} is not"
    )


_SOURCE = "diffusers 0.42.1, forwards of the denoisers: what encoder_hidden_states goes through"

PASS = Pass(
    name="text_kv_cache",
    family=Family.CACHING,
    stage=Stage.CACHE,
    fidelity=Fidelity.EXACT,
    source=_SOURCE,
    owns=("denoiser.text_kv",),
    needs=(Need(_untouched_text, _SOURCE),),
    avoids=(
        Avoid(
            "cuda_graphs",
            "a replay would read the keys and values that were kept when it was recorded",
            "PyTorch docs, CUDA graphs: a replay reads and writes the recorded addresses",
        ),
    ),
    effect=effect,
    apply=apply,
    observe=observe,
    batch_invariant=True,
)
