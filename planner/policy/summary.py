"""A policy in one line: plan, speed-up with its bound, seconds, distance."""

from __future__ import annotations

from planner.case.evidence import Distance, Evidence, Latency, Prediction
from planner.case.goal import Goal
from planner.case.hit_rate import span
from planner.units import format_bytes, format_seconds


def summary(
    plan: str, goal: Goal, evidence: Evidence | None, prediction: Prediction | None = None
) -> str:
    """Return what a reviewer wants to know first."""
    parts = [plan, f"for {asked(goal)}"]
    if evidence is not None:
        parts.append(speed(evidence.latency))
        parts += [distance(evidence.lpips)] if evidence.lpips else []
    if prediction is not None:
        parts.append(foreseen(prediction))
    return "; ".join(parts)


def foreseen(prediction: Prediction) -> str:
    """Say what is predicted of a plan, and that none of it was measured."""
    tuned, baseline = prediction.tuned, prediction.baseline
    return (
        f"predicted {format_seconds(tuned.value)} ({format_seconds(tuned.low)} to "
        f"{format_seconds(tuned.high)}) instead of {format_seconds(baseline.value)}, and "
        f"{format_bytes(prediction.memory_tuned.value)} instead of "
        f"{format_bytes(prediction.memory_baseline.value)}; nothing was measured"
    )


def asked(goal: Goal) -> str:
    """Say what was asked for."""
    limits = []
    if goal.budget_seconds is not None:
        limits.append(f"at most {format_seconds(goal.budget_seconds)} a call")
    if goal.vram_bytes is not None:
        limits.append(f"at most {format_bytes(goal.vram_bytes)}")
    if goal.max_lpips is not None:
        limits.append(f"mean LPIPS at most {goal.max_lpips:.4g}")
    else:
        limits.append("quality not constrained")
    return ", ".join(limits) + f", prefer {goal.prefer}"


def speed(latency: Latency) -> str:
    """Say how much faster the plan is than the untouched call, and how sure that is."""
    ratio, tuned = latency.ratio, latency.tuned
    bound = "" if ratio.upper is None else f", at least {1 / ratio.upper:.3g}x"
    return (
        f"{1 / ratio.value:.3g}x faster{bound}: {format_seconds(tuned.value)} instead of "
        f"{format_seconds(latency.baseline.value)} (median of {latency.rounds} rounds)"
    )


def distance(lpips: Distance) -> str:
    """Say how far the images are from the untouched pipeline's, and how sure that is."""
    bound = "" if lpips.mean.upper is None else f", bound {lpips.mean.upper:.4g}"
    return f"mean LPIPS {lpips.mean.value:.4g}{bound}, n {lpips.n}"


def reuse(evidence: Evidence) -> str:
    """Say what share of its forwards each pass should reuse in a call, and what that rests on."""
    seen = evidence.hit_rates or {}
    said = []
    for name, interval in evidence.reuse.items():
        mean = f"{seen[name].value:.1%}" if name in seen else span(interval)
        range_ = "" if mean == span(interval) else f" ({span(interval)})"
        said.append(f"{name} {mean}{range_}")
    calls = max((rate.calls for rate in seen.values()), default=0)
    grounds = f", from {calls} call{'s' * (calls != 1)}" if calls else ""
    return f"{', '.join(said)} of forwards{grounds}"
