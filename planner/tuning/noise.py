"""The untouched pipeline, measured twice: reference seconds, reference images, noise floor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import TypeVar

from planner.case.goal import LOSSLESS_LPIPS, Goal
from planner.case.noun import Noun
from planner.case.prompts import Prompt, Sample
from planner.errors import PlannerError, TrialFailed, UsageError
from planner.measure.statistics import quantile
from planner.trials.supervisor import Supervisor
from planner.tuning.session import Session

PASSES = ("baseline-1", "baseline-2")

_DEADLINE = 1800.0
_WARM_CALLS = 4
_AGREE = 0.05
"""Share by which two calls in a row may differ for the pipeline to count as warm."""

T = TypeVar("T")


class Noise(Noun):
    """What two renderings of the same call differ by.

    `reference_seconds` is the study's unit of latency: the median of `seconds`, those of all
    untouched calls; `spread` the relative half-width of half of all calls around it; `lpips` and
    `lpips_p95` the distance of the second images to the first.
    """

    reference_seconds: float
    spread: float
    lpips: float
    lpips_p95: float
    memory_bytes: int
    load_seconds: float
    first_call_seconds: float
    seconds: tuple[float, ...] = ()


def measure_noise(
    session: Session, worker: Supervisor, calls: Sequence[tuple[Prompt, ...]]
) -> Noise:
    """Render every search prompt twice, or read what an earlier run of this study rendered.

    Reference images that are gone are drawn anew; their calls are not measured again.
    """
    known = session.ledger.bodies("noise")
    first_call = 0.0 if known else _warmed(worker, calls[0])
    _render_missing(session, worker, calls)
    if known:
        return Noise.model_validate(known[0])
    noise = _noise(session, worker.load_seconds, first_call)
    session.ledger.append("noise", noise.model_dump())
    return noise


def _warmed(worker: Supervisor, call: tuple[Prompt, ...]) -> float:
    """Render until two calls agree, at most four times; returns the seconds of the first."""
    seconds: list[float] = []
    while len(seconds) < _WARM_CALLS:
        sample = render_untouched(worker, call, _DEADLINE, save=False, counted=False)
        seconds.append(sample.seconds)
        if len(seconds) > 1 and abs(seconds[-1] - seconds[-2]) <= _AGREE * seconds[-1]:
            break
    return seconds[0]


def _render_missing(
    session: Session, worker: Supervisor, calls: Sequence[tuple[Prompt, ...]]
) -> None:
    """Measure what was not, and draw the reference images that are not there."""
    for role in PASSES:
        done = {sample.prompts for sample in session.ledger.samples(role)}
        first = role == PASSES[0]
        for call in calls:
            measured = tuple(prompt.id for prompt in call) in done
            drawn = all(reference_image(session.images, prompt).exists() for prompt in call)
            if measured and (drawn or not first):
                continue
            sample = render_untouched(worker, call, _DEADLINE, save=first, counted=not measured)
            if not measured:  # otherwise only the reference image was missing
                session.keep(sample, role)


def resolve(goal: Goal, noise: Noise) -> Goal:
    """Return the goal with `lossless` made a number; refuse a cap below the noise floor.

    Raises `UsageError` with the floor in the message.
    """
    if goal.quality == "lossless":
        goal = goal.model_copy(update={"max_lpips": max(LOSSLESS_LPIPS, 1.5 * noise.lpips)})
    if goal.max_lpips is not None and goal.max_lpips < noise.lpips:
        raise UsageError(
            f"the untouched pipeline differs from itself by LPIPS {noise.lpips:.4f}, more than "
            f"the cap of {goal.max_lpips:g}",
            value=goal.max_lpips,
            way_out=f"ask for --max-lpips {1.5 * noise.lpips:.3f} or more",
        )
    return goal


def render_untouched(
    worker: Supervisor, call: tuple[Prompt, ...], deadline: float, *, save: bool,
    counted: bool = True,
) -> Sample:  # fmt: skip
    """Time one untouched call, a second time where the worker died of the first.

    Raises `PlannerError` where it fails again: that is no plan's fault.
    """
    try:
        return again_if_it_died(
            lambda: worker.render("baseline", call, deadline, save=save, counted=counted)[0]
        )
    except TrialFailed as error:
        raise PlannerError(
            f"the untouched pipeline failed ({error.what})", value=error.value,
            way_out="free memory or look at worker.log beside the ledger, then --resume",
        ) from error  # fmt: skip


def again_if_it_died(action: Callable[[], T]) -> T:
    """Do something in the worker, once more where the worker died or hung.

    A machine that runs out of memory for a moment must not cost a study or a finalist; a second
    death is the plan's own.
    """
    try:
        return action()
    except TrialFailed as error:
        if error.stage not in ("crash", "timeout"):
            raise
        return action()


def _noise(session: Session, load_seconds: float, first_call: float) -> Noise:
    samples: list[Sample] = [s for role in PASSES for s in session.ledger.samples(role)]
    seconds = [sample.seconds for sample in samples]
    again = [v for s in session.ledger.samples(PASSES[1]) for v in s.lpips]
    middle = median(seconds)
    half = (quantile(seconds, 0.75) - quantile(seconds, 0.25)) / 2
    return Noise(
        reference_seconds=middle, spread=half / middle, lpips=fmean(again),
        lpips_p95=quantile(again, 0.95), memory_bytes=max(s.memory_bytes for s in samples),
        load_seconds=load_seconds, first_call_seconds=first_call, seconds=tuple(seconds),
    )  # fmt: skip


def reference_image(images: Path, prompt: Prompt) -> Path:
    """Return where the untouched pipeline's image of a prompt lies."""
    return images / "baseline" / f"{prompt.id}.png"
