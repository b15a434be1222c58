"""Measures a policy again, in a few rounds, and says what drifted from its evidence."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import Any, NamedTuple

from planner.case.hit_rate import Interval, by_pass, is_outside, reused, span
from planner.case.noun import Noun
from planner.case.prompts import Prompt, by_call
from planner.errors import UsageError
from planner.measure.images import check_images, to_pixels
from planner.measure.lpips import Lpips
from planner.measure.statistics import mean_upper, median_upper
from planner.measure.timing import timed
from planner.policy.match import differences
from planner.policy.runtime import Policy, PolicyWarning
from planner.run.apply import Handle
from planner.run.calls import reference_call
from planner.run.devices.base import Backend, backend
from planner.run.expected import UnexpectedReuseWarning

_LEVEL = 0.95


class Held(Noun):
    """A figure measured now beside the one that the policy states.

    `lower` is a one-sided 95 % bound of the new figure (None: too few rounds for one), `stated`
    and `stated_upper` are the policy's. It has drifted where even `lower` is above the stated
    bound: a small sample that merely looks worse has shown nothing.
    """

    value: float
    lower: float | None
    stated: float
    stated_upper: float | None
    unit: str

    @property
    def drifted(self) -> bool:
        """Tell whether the new figure is credibly above the stated bound."""
        limit = self.stated if self.stated_upper is None else self.stated_upper
        return self.lower is not None and self.lower > limit


class Reuse(Noun):
    """The share of its forwards that a pass reuses here, and what its policy expects of a call.

    `value` is the mean over the rounds with the plan, `low` and `high` are their extremes.
    """

    value: float
    low: float
    high: float
    expected_low: float
    expected_high: float

    @property
    def unexpected(self) -> bool:
        """Tell whether a call reused less or more than expected."""
        expected = (self.expected_low, self.expected_high)
        return is_outside(self.low, expected) or is_outside(self.high, expected)

    def __str__(self) -> str:
        seen = "" if self.low == self.high else f" ({span((self.low, self.high))})"
        expected = span((self.expected_low, self.expected_high))
        return f"reuses {self.value:.1%}{seen} of its forwards here; the policy expects {expected}"


class Verified(Noun):
    """What a policy does here and now: figures, what differs from its envelope, what drifted.

    `baseline_seconds` is the untouched call's median; `holds` whether it is within the time up
    to which the policy keeps its budget (None: the policy states none); `unexpected` names passes
    that reuse more or less than they did in any call behind the policy, which alone breaks no
    promise.
    """

    policy: str
    plan: str
    rounds: int
    prompts: int
    ratio: Held
    lpips: Held | None
    baseline_seconds: float
    holds: bool | None
    outside: tuple[str, ...]
    hit_rates: dict[str, Reuse] = {}
    unexpected: tuple[str, ...] = ()
    inert: dict[str, str]
    drifted: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return plain data in which each measured figure says whether it drifted."""
        figures = {name: held.model_dump() | {"drifted": held.drifted}
                   for name, held in (("ratio", self.ratio), ("lpips", self.lpips))
                   if held is not None}  # fmt: skip
        return self.model_dump(mode="json") | figures


class _Round(NamedTuple):
    """Seconds with and without the plan, the distance of each image, and what passes reused."""

    tuned: float
    untouched: float
    lpips: tuple[float, ...]
    hit_rates: dict[str, float]


def prompts_for(policy: Policy, texts: Sequence[str], count: int) -> list[Prompt]:
    """Return the given texts as prompts, else `count` unseen ones of a catalogued model.

    Raises `UsageError` where there are neither, or too few.
    """
    from planner.catalog.reader import prompts_for as catalogued

    label = policy.file.case.model.id
    known = list(texts) or catalogued(label, "certify")
    if known is None:
        way_out = "give --prompt TEXT, several times"
        raise UsageError(f"no prompts are known for {label!r}", value=label, way_out=way_out)
    if not texts and count > len(known):
        what = f"{label!r} has {len(known)} unseen prompts, not {count}"
        raise UsageError(what, value=count, way_out="ask for fewer")
    chosen = known if texts else known[:count]
    return [Prompt(text=text, seed=seed) for seed, text in enumerate(chosen)]


def verify(
    policy: Policy,
    pipe: Any,
    prompts: Sequence[Prompt],
    *,
    rounds: int = 5,
    say: Callable[[str], None] = lambda line: None,
) -> Verified:
    """Alternate calls with and without the plan, on the same prompts, seeds and latents.

    There are at least `rounds` of them, and as many as the prompts fill at the workload's batch
    size. Raises `UsageError` for a policy without evidence, `PolicyDoesNotFit` as `apply` does.
    """
    evidence = policy.file.evidence
    if evidence is None:
        what, way_out = f"{policy.path} states no figures", "tune for this case first"
        raise UsageError(what, value=policy.status, way_out=way_out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PolicyWarning)  # what it says is in the result
        handle = policy.apply(pipe)
    with handle, warnings.catch_warnings():
        warnings.simplefilter("ignore", UnexpectedReuseWarning)  # so is this, for every round
        found = _rounds(handle, prompts, rounds, say)
        inert = handle.complaints()
        outside = differences(policy.file, handle.case).envelope
    expected = {name: rate for name, rate in evidence.reuse.items() if name in policy.plan}
    reuse = _reuse(expected, by_pass([each.hit_rates for each in found]))
    ratio, stated = [r.tuned / r.untouched for r in found], evidence.latency.ratio
    distances = [value for each in found for value in each.lpips]
    lpips = evidence.lpips
    latency = Held(value=median(ratio), lower=_lower(median_upper, ratio), stated=stated.value,
                   stated_upper=stated.upper, unit="ratio")  # fmt: skip
    quality = None if lpips is None else Held(
        value=fmean(distances), lower=_lower(mean_upper, distances), stated=lpips.mean.value,
        stated_upper=lpips.mean.upper, unit="LPIPS")  # fmt: skip
    limit = evidence.latency.holds_while_baseline_within
    untouched = median(r.untouched for r in found)
    return Verified(
        policy=str(policy.path), plan=str(policy.plan), rounds=len(found), prompts=len(distances),
        ratio=latency, lpips=quality, baseline_seconds=untouched,
        holds=None if limit is None else untouched <= limit, outside=outside, inert=inert,
        hit_rates=reuse, drifted=_drifted(latency, quality, inert),
        unexpected=tuple(f"{name} {one}" for name, one in reuse.items() if one.unexpected),
    )  # fmt: skip


def _drifted(latency: Held, quality: Held | None, inert: dict[str, str]) -> tuple[str, ...]:
    """Return a sentence for everything that no longer is what the policy states."""
    said = [f"{name} does not do what it should ({why})" for name, why in inert.items()]
    for name, held in (("latency ratio", latency), ("mean LPIPS", quality)):
        if held is not None and held.drifted:
            limit = held.stated if held.stated_upper is None else held.stated_upper
            said.append(f"{name} is {held.value:.4g} here (at least {held.lower:.4g}); "
                        f"the policy states at most {limit:.4g}")  # fmt: skip
    return tuple(said)


def _reuse(
    stated: Mapping[str, Interval], seen: Mapping[str, Sequence[float]]
) -> dict[str, Reuse]:
    """Return what each pass with an expectation reused in all rounds."""
    found = {}
    for name, (low, high) in stated.items():
        rates = seen.get(name, (0.0,))
        found[name] = Reuse(value=fmean(rates), low=min(rates), high=max(rates),
                            expected_low=low, expected_high=high)  # fmt: skip
    return found


def _rounds(
    handle: Handle, prompts: Sequence[Prompt], rounds: int, say: Callable[[str], None]
) -> list[_Round]:
    """Warm both sides with one call each, then alternate which goes first."""
    if not prompts:
        way_out = "give at least one prompt"
        raise UsageError("there is nothing to render", value=0, way_out=way_out)
    size = handle.case.workload.batch_size
    batches = [list(call) for call in by_call(prompts, size)]
    batches[-1] = [*batches[-1], *list(prompts) * size][:size]
    device = backend(str(handle.pipeline.device))
    lpips = Lpips()
    say("warming up")
    _tuned(handle, batches[0], device)
    _untouched(handle, batches[0], device)
    found = []
    for index in range(max(rounds, len(batches))):
        batch = batches[index % len(batches)]
        sides = (_tuned, _untouched) if index % 2 == 0 else (_untouched, _tuned)
        results = {side: side(handle, batch, device) for side in sides}
        (tuned, ours), (untouched, theirs) = results[_tuned], results[_untouched]
        fresh = index < len(batches)  # a prompt seen again tells nothing new about its distance
        distances = [lpips.distance(a, b) for a, b in zip(ours, theirs, strict=True) if fresh]
        found.append(_Round(tuned, untouched, tuple(distances), reused(handle.stats)))
        say(f"round {index + 1}: {tuned:.3g} s with the plan, {untouched:.3g} s untouched")
    return found


def _tuned(handle: Handle, batch: Sequence[Prompt], device: Backend) -> tuple[float, list[Any]]:
    texts = [prompt.text for prompt in batch]
    arguments = {"prompt": texts if texts[1:] else texts[0]}
    return _call(handle.pipeline, arguments, batch, device)


def _untouched(handle: Handle, batch: Sequence[Prompt], device: Backend) -> tuple[float, list[Any]]:
    arguments = reference_call(handle.case.workload, [prompt.text for prompt in batch])
    with handle.suspended() as pipe:
        return _call(pipe, arguments, batch, device)


def _call(
    pipe: Any, arguments: dict[str, Any], batch: Sequence[Prompt], device: Backend
) -> tuple[float, list[Any]]:
    """Return the seconds of one whole call and its images, checked, as 8-bit arrays."""
    import torch

    noise = [torch.Generator("cpu").manual_seed(prompt.seed) for prompt in batch]
    seconds, output = timed(lambda: pipe(**arguments, generator=noise, output_type="np"), device)
    images = list(output.images)
    check_images(images)
    return seconds, [to_pixels(image) for image in images]


def _lower(bound: Callable[[Sequence[float], float], float], values: list[float]) -> float | None:
    """Return a one-sided lower bound: the upper one of the mirrored values, mirrored."""
    found = -bound([-value for value in values], _LEVEL) if len(values) > 1 else -math.inf
    return found if math.isfinite(found) else None
