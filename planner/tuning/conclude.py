"""Turns what a study measured into the policy that people commit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median

from planner.case.device import Device
from planner.case.evidence import Certificate, Distance, Evidence, Latency, Quantity
from planner.case.goal import Goal
from planner.case.hit_rate import HitRate, reused
from planner.case.noun import Scalar
from planner.case.outcome import Measured
from planner.case.prompts import Sample
from planner.measure.lpips import IMPLEMENTATION
from planner.measure.statistics import mean_upper, median_upper, quantile, share_lower
from planner.passes import registry
from planner.plans.plan import Plan
from planner.policy.atomic import replace
from planner.policy.file import PolicyFile, schema_text, write_policy
from planner.policy.schema import NAME
from planner.trials.protocol import Put
from planner.trials.trial import Trial
from planner.tuning.certify import ALPHA, Rounds, Verdict
from planner.tuning.noise import Noise
from planner.tuning.request import Split, TuneRequest, goal_slug

METHOD = (
    "one-sided bounds on unseen prompts: median ratio by order statistics, mean LPIPS by "
    "Johnson's skew-corrected t (approximate); finalists tested in an order fixed beforehand"
)
PROTOCOL = (
    "whole pipeline calls, synchronized on both sides, one warm-up call left out; same prompts, "
    "seeds and initial latents; {rounds}; seconds are the median ratio times the study's median "
    "untouched call"
)
_ALTERNATING = "candidate and untouched call alternate"
_BRACKETED = "one untouched call before and one after the candidate's calls"
_LEVEL = 0.95


def evidence(
    plan: Plan, rounds: Rounds, noise: Noise, goal: Goal, trials: Sequence[Trial],
    certificate: Certificate | None, level: float = _LEVEL, put: Put | None = None,
) -> Evidence:  # fmt: skip
    """Return the figures of a plan from its interleaved rounds; `level` is the bounds' level.

    Starting up is taken from `put`, else from the plan's trial, whose worker may have compiled
    or packed the same before.
    """
    began = put or _last_measured(plan, trials)
    peak = max(sample.memory_bytes for sample in rounds.candidate)
    latency = _latency(rounds, noise, goal, level, bounded=certificate is not None)
    images = max(1, len(rounds.candidate[0].lpips))
    saved = (latency.baseline.value - latency.tuned.value) / images
    start = began.apply_seconds + max(0.0, began.first_call_seconds - latency.tuned.value)
    return Evidence(
        latency=latency,
        lpips=_distance(rounds.lpips, noise, goal, level),
        memory_baseline=Quantity(value=noise.memory_bytes, unit="bytes"),
        memory_tuned=Quantity(value=peak, upper=peak, unit="bytes"),
        load_seconds=round(noise.load_seconds, 3),
        apply_seconds=round(began.apply_seconds, 3),
        first_call_seconds=round(began.first_call_seconds, 3),
        pays_off_after_images=math.ceil(start / saved) if saved > 0 else None,
        statistics=rounds.candidate[-1].statistics,
        hit_rates=hit_rates(rounds.candidate),
        certificate=certificate,
        protocol=PROTOCOL.format(rounds=_ALTERNATING if certificate else _BRACKETED),
        trials=len(trials),
    )


def certificate(
    verdicts: Sequence[Verdict], finalists: Sequence[Plan], split: Split, openings: int
) -> Certificate:
    """Describe how the verdict was reached."""
    passed = next((str(v.plan) for v in verdicts if v.passed), None)
    last = verdicts[-1]
    return Certificate(
        method=METHOD, alpha=ALPHA, alpha_each=last.alpha_each,
        finalists=tuple(str(plan) for plan in finalists), certified=passed, openings=openings,
        prompts=split.certify_hash, n=last.n,
    )  # fmt: skip


def rounds_of_trial(trial: Trial) -> Rounds:
    """Read a search trial as rounds: what an uncertified policy rests on."""
    outcome = trial.outcome
    assert isinstance(outcome, Measured)
    size = max(1, len(outcome.lpips) // len(outcome.seconds))
    candidate = tuple(
        Sample(prompts=(str(i),), seconds=seconds, memory_bytes=outcome.memory_bytes,
               lpips=outcome.lpips[i * size : (i + 1) * size], statistics=_counted(outcome, i))
        for i, seconds in enumerate(outcome.seconds)
    )  # fmt: skip
    baseline = tuple(
        Sample(prompts=(str(i),), seconds=seconds / ratio)
        for i, (seconds, ratio) in enumerate(zip(outcome.seconds, outcome.ratios, strict=True))
    )
    return Rounds(candidate=candidate, baseline=baseline)


def _counted(outcome: Measured, call: int) -> dict[str, dict[str, Scalar]]:
    """Return what passes counted in a call; trials of older ledgers know their last one alone."""
    if call == len(outcome.seconds) - 1:
        return outcome.statistics
    return {name: {**outcome.statistics.get(name, {}), "hit_rate": rates[call]}
            for name, rates in outcome.hit_rates.items()}  # fmt: skip


def hit_rates(samples: Sequence[Sample]) -> dict[str, HitRate] | None:
    """Return by counting pass the mean share of reused forwards, and what to expect of a call.

    That is what was seen where the mask is known before the call. A pass that decides by the
    images may do otherwise on others: of 33 calls, one of the two at the ends lies beyond the
    rest by chance, so one step of every branch is added, the least by which two calls differ.
    """
    seen: dict[str, list[Mapping[str, Scalar]]] = {}
    for sample in samples:
        for name in reused(sample.statistics):
            seen.setdefault(name, []).append(sample.statistics[name])
    return {name: _hit_rate(name, calls) for name, calls in seen.items()} or None


def _hit_rate(name: str, calls: Sequence[Mapping[str, Scalar]]) -> HitRate:
    rates = [reused({name: counters})[name] for counters in calls]
    low, high = min(rates), max(rates)
    # What an image's neighbours in the batch can change is decided by what the images are.
    if low < high or not registry.get(name).batch_invariant:
        step = max(_one_step(counters) for counters in calls)
        low, high = max(0.0, low - step), min(1.0, high + step)
    return HitRate(value=round(fmean(rates), 4), low=round(low, 4), high=round(high, 4),
                   calls=len(rates))  # fmt: skip


def _one_step(counters: Mapping[str, Scalar]) -> float:
    """Return the share of a call's forwards that one step of every branch is."""
    counts = {key: value for key, value in counters.items() if isinstance(value, int)}
    branches = sum(key.startswith("reused_") for key in counts)
    return max(1, branches) / max(1, counts.get("computed", 0) + counts.get("reused", 0))


def write(policy: PolicyFile, path: Path) -> None:
    """Write a policy where `policy_path` says, and the schema that its first line refers to.

    Raises as `write_policy` does.
    """
    write_policy(policy, path)
    replace(path.parents[2] / NAME, schema_text().encode())


def policy_path(request: TuneRequest, device: Device) -> Path:
    """Return where a policy lies: <out>/policies/<model>/<device>/<goal>.yaml."""
    name = f"{goal_slug(request.goal)}.yaml"
    return request.out / "policies" / request.label / device.slug / name


def page_path(request: TuneRequest, device: Device) -> Path:
    """Return where a page lies: <out>/reports/<model>/<device>/<goal>.html."""
    name = f"{goal_slug(request.goal)}.html"
    return request.out / "reports" / request.label / device.slug / name


def _latency(rounds: Rounds, noise: Noise, goal: Goal, level: float, *, bounded: bool) -> Latency:
    """Return the latency; the ratio `bounded` or not, for bracketed calls are no rounds."""
    reference = noise.reference_seconds
    ratios = rounds.ratios
    ratio, upper = median(ratios), median_upper(ratios, level) if bounded else math.inf
    budget = goal.budget_seconds
    return Latency(
        baseline=Quantity(value=_round(reference), unit="s",
                          upper=_finite(median_upper(noise.seconds, level))),
        noise_spread=_round(noise.spread),
        tuned=Quantity(value=_round(ratio * reference), unit="s",
                       upper=_finite(upper * reference)),
        ratio=Quantity(value=_round(ratio), unit="ratio", upper=_finite(upper)),
        p90_seconds=_round(quantile(ratios, 0.9) * reference),
        rounds=len(ratios),
        holds_while_baseline_within=(
            _round(budget / upper) if budget is not None and math.isfinite(upper) else None
        ),
    )  # fmt: skip


def _finite(bound: float) -> float | None:
    """Return a bound with the usual digits, or None where too few values give one."""
    return _round(bound) if math.isfinite(bound) else None


def _distance(
    values: Sequence[float], noise: Noise, goal: Goal, level: float
) -> Distance | None:
    if not values:
        return None
    cap = goal.max_lpips
    under = sum(value <= cap for value in values) if cap is not None else 0
    return Distance(
        mean=Quantity(value=_round(fmean(values)), upper=_finite(mean_upper(values, level)),
                      unit="LPIPS"),
        q50=_round(quantile(values, 0.5)), q90=_round(quantile(values, 0.9)),
        worst=_round(max(values)), n=len(values), noise_floor=_round(noise.lpips),
        share_under_cap_lower=(
            None if cap is None else _round(share_lower(under, len(values), _LEVEL))
        ),
        implementation=IMPLEMENTATION,
        per_prompt=tuple(_round(value) for value in values),
    )  # fmt: skip


def _last_measured(plan: Plan, trials: Sequence[Trial]) -> Measured:
    found = [t.outcome for t in trials if t.plan == plan and isinstance(t.outcome, Measured)]
    return found[-1]


def _round(value: float) -> float:
    """Four significant digits: no figure here is known better."""
    return float(f"{value:.4g}")
