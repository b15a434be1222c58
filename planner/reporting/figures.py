"""The figures of a study as data points: the front, the incumbent's path, what passes bought."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from statistics import fmean, stdev
from typing import Literal, NamedTuple

from planner.case.noun import Scalar
from planner.measure.statistics import quantile
from planner.passes import registry
from planner.plans.rules import Planned, effective_call
from planner.reporting.findings import Findings
from planner.trials.trial import Trial
from planner.tuning.choose import incumbent
from planner.tuning.foresight import compared

Standing = Literal["inside", "outside", "stopped"]


class Point(NamedTuple):
    """A measured plan: seconds with the middle half of its ratios, mean LPIPS with its error.

    `error` is the standard error of the mean; `lpips` is None where no image was compared.
    """

    number: int
    plan: str
    seconds: float
    low: float
    high: float
    lpips: float | None
    error: float
    standing: Standing
    on_front: bool
    shown: bool


class Certified(NamedTuple):
    """A finalist's figures on unseen prompts, with their upper bounds where there are any."""

    seconds: float
    seconds_upper: float | None
    lpips: float
    lpips_upper: float | None
    n: int


class Attempt(NamedTuple):
    """One trial on the incumbent's path; `value` is None where it failed or was never looked at.

    `best` is the objective of the best plan inside the limits after this trial.
    """

    number: int
    plan: str
    origin: str
    value: float | None
    standing: Standing | Literal["failed"]
    best: float | None


class Strip(NamedTuple):
    """What one branch did at each step, as shares of `calls` pipeline calls.

    `computed` and `absent` go by step; what neither computed nor was absent was reused. A branch
    is absent where another pass left its forward out.
    """

    label: str
    computed: tuple[float, ...]
    absent: tuple[float, ...]
    calls: int


class Foretold(NamedTuple):
    """One trial: seconds expected before it ran, with their interval, and what it took."""

    number: int
    plan: str
    predicted: float
    low: float
    high: float
    measured: float

    @property
    def inside(self) -> bool:
        """Tell whether the interval held what was measured."""
        return self.low <= self.measured <= self.high


def points(found: Findings) -> tuple[Point, ...]:
    """Return every measured plan of the study, in the order of trials."""
    front = {trial.number for trial in found.front}
    return tuple(
        _point(found, trial, front) for trial in found.trials if trial.number in found.scores
    )


def foretold(found: Findings) -> tuple[Foretold, ...]:
    """Return every measured trial that was predicted before it ran, in order."""
    if found.reference is None:
        return ()
    return tuple(
        Foretold(trial.number, str(trial.plan), predicted, trial.predicted.get("low", predicted),
                 trial.predicted.get("high", predicted), measured)
        for trial, predicted, measured in compared(found.trials, found.reference)
    )  # fmt: skip


def certified(found: Findings) -> Certified | None:
    """Return what the shown plan reached on unseen prompts, or None if it was not tried there."""
    rounds = found.rounds(found.plan)
    if rounds is None or found.reference is None or not rounds.ratios or not rounds.lpips:
        return None
    bounds = getattr(found.verdict_of(found.plan), "bounds", {})
    upper = {name: bound.upper for name, bound in bounds.items() if bound.upper < 1e9}
    return Certified(
        seconds=quantile(rounds.ratios, 0.5) * found.reference,
        seconds_upper=upper.get("latency"),
        lpips=fmean(rounds.lpips),
        lpips_upper=upper.get("lpips"),
        n=len(rounds.lpips),
    )


def path(found: Findings) -> tuple[Attempt, ...]:
    """Return the trials of the search in order, with the best objective so far."""
    if found.reference is None:
        return ()
    attempts = []
    for count, trial in enumerate(found.candidates, start=1):
        best = incumbent(found.candidates[:count], found.goal, found.reference)
        score = found.scores.get(trial.number)
        attempts.append(Attempt(
            number=trial.number, plan=str(trial.plan), origin=trial.origin,
            value=score.objective if score else None,
            standing=_standing(found, trial) if score else "failed",
            best=best[1].objective if best else None,
        ))  # fmt: skip
    return tuple(attempts)


def strips(found: Findings) -> tuple[Strip, ...]:
    """Return a strip for every step mask that the shown plan's passes wrote down.

    Masks of all certification calls are averaged, since adaptive caches decide anew for every
    prompt; without such calls the trial's last call speaks alone.
    """
    rounds = found.rounds(found.plan)
    if rounds is not None:
        seen = [sample.statistics for sample in rounds.candidate]
    else:
        seen = [found.trial.measured.statistics] if found.trial and found.trial.measured else []
    masks: dict[str, list[str]] = {}
    for statistics in seen:
        for label, mask in _masks(statistics).items():
            masks.setdefault(label, []).append(mask)
    return tuple(_strip(label, texts) for label, texts in masks.items())


def steps(found: Findings) -> int | None:
    """Return how many steps a call of the shown plan takes, or None where nothing was measured."""
    if found.plan is None or found.trial is None:
        return None
    stack = [Planned(registry.get(entry.name), entry.parsed()) for entry in found.plan.passes]
    count = effective_call(found.case, stack).get("num_inference_steps")
    return count if isinstance(count, int) else None


def _point(found: Findings, trial: Trial, front: set[int]) -> Point:
    measured, score = trial.measured, found.scores[trial.number]
    assert measured is not None and found.reference is not None
    lpips = measured.lpips
    return Point(
        number=trial.number, plan=str(trial.plan), seconds=score.seconds,
        low=quantile(measured.ratios, 0.25) * found.reference,
        high=quantile(measured.ratios, 0.75) * found.reference,
        lpips=score.lpips, error=stdev(lpips) / sqrt(len(lpips)) if len(lpips) > 1 else 0.0,
        standing=_standing(found, trial), on_front=trial.number in front,
        shown=trial == found.trial,
    )  # fmt: skip


def _standing(found: Findings, trial: Trial) -> Standing:
    if trial.measured is not None and trial.measured.stopped_early:
        return "stopped"
    return "inside" if found.scores[trial.number].inside else "outside"


def _masks(statistics: Mapping[str, Mapping[str, Scalar]]) -> dict[str, str]:
    """Return the step masks of one call by label, all as long as the longest."""
    found = {}
    for name, counters in statistics.items():
        for key, value in counters.items():
            if key.startswith("mask") and isinstance(value, str) and value:
                branch = key.removeprefix("mask").strip("._ ")
                found[f"{name} · {branch}" if branch else name] = value
    steps = max((len(mask) for mask in found.values()), default=0)
    # A branch whose last forwards were left out wrote nothing down for them.
    return {label: mask.ljust(steps, "-") for label, mask in found.items()}


def _strip(label: str, masks: list[str]) -> Strip:
    length = max(len(mask) for mask in masks)
    whole = [mask for mask in masks if len(mask) == length]

    def shares(mark: str) -> tuple[float, ...]:
        return tuple(sum(m[i] == mark for m in whole) / len(whole) for i in range(length))

    return Strip(label=label, computed=shares("1"), absent=shares("-"), calls=len(whole))
