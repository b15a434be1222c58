"""Reuse while the part of the latents that the model can see by now has barely changed.

What it does: the latents of every step are filtered in frequency space over frames, rows and
columns, so that what noise still hides counts little: at high noise only coarse structure is
left. The relative change of the filtered latents is added up from step to step; below the threshold
the denoiser is not called (or its block stack alone is skipped), and what it gives is forecast. The
first and the last step always run, those before `start` too, and not more than `most` are skipped
in a row. The first branch of a step decides for all: they share their latents.
When it helps: long schedules of any denoiser, images and videos; nothing is calibrated.
What it costs: a Fourier transform of the latents and one scalar read a step; one or two outputs a
branch (residuals, where the stack is skipped).
When not: 8 steps or fewer; schedulers without noise levels.
Source: SeaCache (arXiv 2602.18993). diffusers' own acts on two pipelines of its own; this one
needs no step data from the pipeline.
"""

from __future__ import annotations

from typing import Any, Literal

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.case.work import Work
from planner.case.workload import Workload
from planner.errors import UsageError
from planner.hooks.blocks import denoiser_of
from planner.hooks.changes import relative_change
from planner.hooks.clock import StepClock
from planner.hooks.gate import Gate, pinned
from planner.hooks.grids import channels_of, pictured
from planner.hooks.recorder import Forward
from planner.hooks.reuse import (
    computed_share,
    known_blocks,
    long_enough,
    nothing_read_between,
    reused_none,
    skipping_forwards,
    skipping_steps,
    steps_of,
    with_residuals,
)
from planner.hooks.skipping import skipping
from planner.hooks.whole import Run, Whole
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

POWER = 3.0
"""Fall of an image's spectrum with frequency, as in the paper."""


class SeaCacheSettings(Settings):
    """How much the filtered latents may change, from where on, and what is forecast."""

    threshold: float = knob(
        0.25, "gathered relative change of the filtered latents at which the denoiser runs again",
        low=0.02, high=2.0, log=True, least=0.0, most=100.0,
    )  # fmt: skip
    start: float = knob(
        0.1, "share of the schedule before which every step is computed", low=0.0, high=0.4,
        step=0.05, least=0.0, most=1.0,
    )  # fmt: skip
    most: int = knob(4, "steps that may be skipped in a row", low=1, high=8, step=1, least=1,
                     most=1000)  # fmt: skip
    order: int = knob(1, "order of the forecast", choices=(0, 1), least=0, most=1)
    tensor: Literal["output", "residual"] = knob(
        "output", "what is forecast: the denoiser's output, so that it is not called at all, or "
        "what its block stack adds", choices=("output", "residual"),
    )  # fmt: skip


def filtered(latents: Any, level: float) -> Any:
    """Return latents (… × frames × rows × columns) as seen through noise of a level in 0..1.

    Along every axis the gain is (1 - s) / ((1 - s)² + s² |f|³), the product normalised to mean 1.
    """
    import torch

    s = min(max(level, 1e-6), 1 - 1e-6)
    gain = torch.ones((), device=latents.device)
    for axis in (-3, -2, -1):
        size = latents.shape[axis]
        frequency = torch.fft.fftfreq(size, device=latents.device).abs()
        along = (1 - s) / ((1 - s) ** 2 + s**2 * frequency**POWER)
        gain = gain * along.reshape([size if -axis == k else 1 for k in (3, 2, 1)])
    spectrum = torch.fft.fftn(latents.float(), dim=(-3, -2, -1))
    return torch.fft.ifftn(spectrum * (gain / gain.mean()), dim=(-3, -2, -1)).real


def indicator(args: Any, kwargs: Any, level: float, channels: int) -> Any:
    """Return a denoiser's filtered latents as one row of numbers."""
    import torch

    return torch.cat([filtered(one, level).flatten() for one in pictured(args, kwargs, channels)])


class _SeaCache:
    """Adds up the changes of the filtered latents; stands around the denoiser to see them."""

    def __init__(self, settings: SeaCacheSettings, clock: StepClock, channels: int) -> None:
        self._settings, self._clock, self._channels = settings, clock, channels
        self.restart()

    def restart(self) -> None:
        """Forget the last call."""
        self._gate = Gate(self._settings.threshold, self._settings.most)
        self._seen: tuple[int, Any] = (-1, None)
        self._skips = False

    def around(self, branch: str, run: Run, args: Any, kwargs: Any) -> Any:
        """Look at the latents of a step when the first branch brings them; run the denoiser."""
        self._look(args, kwargs)
        return run(*args, **kwargs)

    def _look(self, args: Any, kwargs: Any) -> None:
        step, (last, before) = self._clock.step, self._seen
        if step == last or not self._clock.running:
            return
        now = indicator(args, kwargs, self._clock.level, self._channels)
        known = before is not None and before.shape == now.shape and last == step - 1
        held = not known or pinned(step, self._clock.total, self._settings.start)
        change = relative_change(now, before) if known else 0.0
        self._skips = self._gate.skips(change, held)
        self._seen = step, now

    def skips(self, branch: str, block: Any, args: Any, kwargs: Any) -> bool:
        """Tell what the step's first branch has decided."""
        if block is None:
            self._look(args, kwargs)
        return self._skips


def apply(pipeline: Any, settings: SeaCacheSettings, context: Context) -> Undo:
    """Put the rule around the denoiser, or on its block stack."""
    whole, clock, denoiser = around(settings), context.clock, denoiser_of(pipeline)
    rule = _SeaCache(settings, clock, channels_of(denoiser))
    undo = skipping(pipeline, rule, clock, context.statistics, "planner_sea_cache",
                    settings.order, whole=whole)  # fmt: skip
    if whole:
        return undo
    watch = Whole(denoiser, rule, clock, "planner_sea_latents")

    def both() -> None:
        watch.detach()
        undo()

    return both


def around(settings: SeaCacheSettings) -> bool:
    """Tell whether the denoiser is not called at all at a skipped step."""
    return settings.tensor == "output"


def probe(forward: Forward) -> Any:
    """Return the filtered latents, None where nothing tells how they lie."""
    channels = channels_of(forward.denoiser)
    try:
        return indicator(forward.args, forward.kwargs, forward.clock.level, channels)[None]
    except UsageError:
        return None


def masks(settings: SeaCacheSettings, telemetry: Telemetry) -> Masks:
    """Return the steps that the rule would compute in the recorded calls."""
    held = [pinned(step, telemetry.steps, settings.start) for step in range(telemetry.steps)]
    return [
        dict.fromkeys(seen, Gate(settings.threshold, settings.most).mask(
            next(iter(seen.values())).changes(), held))
        for seen in telemetry.series("sea_cache")
    ]  # fmt: skip


def effect(work: Work, settings: SeaCacheSettings, telemetry: Telemetry | None) -> Work:
    """Lower the calls, or the share of all blocks, to the simulated ones; without telemetry hold
    more where residuals are kept.
    """
    if telemetry is None:
        return work if around(settings) else with_residuals(work, settings.order + 1)
    share_of = computed_share(masks(settings, telemetry.at(steps_of(work))))
    if around(settings):
        return skipping_forwards(work, share_of)
    return skipping_steps(work, share_of, settings.order + 1)


def narrow(case: Case, telemetry: Telemetry | None) -> dict[str, Domain]:
    """Return the thresholds at which something changes, and what can be forecast here."""
    found = {} if case.model.traits.skippable else {"tensor": Domain(choices=("output",))}
    if telemetry is None:
        return found
    return found | narrowed("threshold", telemetry.at(case.workload.steps), lambda value, seen:
                            masks(SeaCacheSettings(threshold=value), seen))  # fmt: skip


def unfit(case: Case, settings: SeaCacheSettings) -> str | None:
    """Answer a sentence where the blocks to be skipped are not known."""
    said = None
    if not around(settings):
        said = known_blocks("sea_cache")(case) or nothing_read_between("sea_cache")(case)
    return said and f"{said}; forecast the output instead (tensor: output)"


def observe(settings: SeaCacheSettings, statistics: Statistics, workload: Workload) -> str | None:
    """Answer a sentence if nothing was reused."""
    return reused_none("sea_cache", settings.threshold, statistics)


PASS = Pass(
    name="sea_cache",
    family=Family.CACHING,
    stage=Stage.CACHE,
    fidelity=Fidelity.APPROXIMATE,
    source="SeaCache, arXiv 2602.18993",
    settings=SeaCacheSettings,
    owns=("denoiser.step_reuse",),
    needs=(
        Need(long_enough("sea_cache"), "interactions R14: step caches off at 8 steps and fewer"),
        one_denoiser("sea_cache"),
    ),
    effect=effect,
    probe=probe,
    masks=masks,
    apply=apply,
    observe=observe,
    narrow=narrow,
    unfit=unfit,
    around=around,
    seeds=({"threshold": 0.25}, {"threshold": 0.6, "most": 6}),
    batch_invariant=False,
)
