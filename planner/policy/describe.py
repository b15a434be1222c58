"""What a policy says, for people: in full, and how two of them differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.case.case import Case
from planner.case.evidence import Evidence, Prediction
from planner.case.noun import Noun
from planner.policy.file import PolicyFile, document
from planner.policy.summary import asked, distance, foreseen, reuse, speed
from planner.units import format_bytes, format_seconds


def describe(policy: PolicyFile) -> tuple[str, ...]:
    """Return a policy as a few lines: plan, case, evidence, origin."""
    origin = policy.provenance
    return (
        f"plan      {policy.as_plan()}",
        f"status    {policy.status}",
        f"goal      {asked(policy.goal)}",
        *_case(policy.case),
        *(_evidence(policy.evidence) if policy.evidence else ("evidence  none",)),
        *(_prediction(policy.prediction) if policy.prediction else ()),
        f"origin    planner {origin.planner}, {origin.time}"
        + (f", commit {origin.commit[:12]}" if origin.commit else "")
        + (f": {origin.command}" if origin.command else ""),
        f"digest    {policy.digest()}",
    )


def _case(case: Case) -> tuple[str, ...]:
    call = ", ".join(f"{key}={value!r}" for key, value in case.workload.call.items())
    batch = f"batch {case.workload.batch_size}, {case.workload.dtype}"
    threads = case.device.threads
    return (
        f"model     {case.model.id} ({case.model.pipeline})",
        f"device    {case.device.name}, {threads} thread{'s' * (threads != 1)}",
        f"call      {call}; {batch}",
    )


def _evidence(evidence: Evidence) -> tuple[str, ...]:
    latency, lpips = evidence.latency, evidence.lpips
    lines = [f"speed     {speed(latency)}", f"          {_ratio(evidence)}"]
    limit = latency.holds_while_baseline_within
    if limit is not None:
        lines.append(f"          holds while the untouched pipeline renders in at most "
                     f"{format_seconds(limit)} here")  # fmt: skip
    if lpips is not None:
        lines.append(f"quality   {distance(lpips)}; median {lpips.q50:.4g}, 90 % {lpips.q90:.4g}, "
                     f"worst {lpips.worst:.4g}, noise floor {lpips.noise_floor:.4g}")  # fmt: skip
    else:
        lines.append("quality   not measured")
    lines += [f"reuse     {reuse(evidence)}"] if evidence.reuse else []
    lines.append(f"memory    {format_bytes(evidence.memory_tuned.value)} instead of "
                 f"{format_bytes(evidence.memory_baseline.value)}")  # fmt: skip
    lines.append(f"start-up  load {format_seconds(evidence.load_seconds)}, apply "
                 f"{format_seconds(evidence.apply_seconds)}, first call "
                 f"{format_seconds(evidence.first_call_seconds)}{_pays_off(evidence)}")  # fmt: skip
    return (*lines, f"method    {_method(evidence)}")


def _prediction(prediction: Prediction) -> tuple[str, ...]:
    rungs = (f"          {one.rung}: {one.plan}, {format_seconds(one.seconds)}"
             for one in prediction.ladder)  # fmt: skip
    return (
        f"foreseen  {foreseen(prediction)}", f"          rests on {prediction.rests_on}",
        f"quality   {prediction.quality}", *rungs,
    )  # fmt: skip


def _ratio(evidence: Evidence) -> str:
    ratio, baseline = evidence.latency.ratio, evidence.latency.baseline
    bound = "" if ratio.upper is None else f" (at most {ratio.upper:.4g})"
    least = "" if baseline.upper is None else f"at most {format_seconds(baseline.upper)}, "
    return (
        f"ratio {ratio.value:.4g}{bound} to a reference of {format_seconds(baseline.value)} "
        f"({least}half of all calls within ±{evidence.latency.noise_spread:.1%})"
    )


def _pays_off(evidence: Evidence) -> str:
    images = evidence.pays_off_after_images
    return "" if images is None else f"; pays off after {images} image{'s' * (images != 1)}"


def _method(evidence: Evidence) -> str:
    certificate = evidence.certificate
    if certificate is None:
        return f"{evidence.protocol}; {evidence.trials} trials, no certificate"
    return (
        f"{certificate.method}; {certificate.n} unseen prompts, alpha {certificate.alpha:.4g} "
        f"({certificate.alpha_each:.4g} a test), finalists {len(certificate.finalists)}, "
        f"opening {certificate.openings}; {evidence.trials} trials"
    )


class Change(Noun):
    """One place at which two policies differ; None stands for absent."""

    place: str
    before: Any
    after: Any

    def __str__(self) -> str:
        numbers = isinstance(self.before, int | float) and isinstance(self.after, int | float)
        moved = f" ({self.after / self.before - 1:+.1%})" if numbers and self.before else ""
        return f"{self.place}: {_shown(self.before)} → {_shown(self.after)}{moved}"


def changes(before: PolicyFile, after: PolicyFile) -> tuple[Change, ...]:
    """Return every place at which two policies differ, in the order of the file."""
    old, new = _places(before), _places(after)
    keys = [*old, *(key for key in new if key not in old)]
    return tuple(
        Change(place=key, before=old.get(key), after=new.get(key))
        for key in keys
        if old.get(key) != new.get(key)
    )


def _places(policy: PolicyFile) -> dict[str, Any]:
    """Return place → value of everything but the lines that follow from the rest."""
    body = {key: value for key, value in document(policy).items()
            if key not in ("summary", "digest", "plan")}  # fmt: skip
    plan = {entry.name: entry.settings | _learned(entry.artifact) for entry in policy.plan}
    return {"plan": " > ".join(plan) or "baseline"} | _flat({"plan": plan}) | _flat(body)


def _learned(artifact: dict[str, Any] | None) -> dict[str, Any]:
    return {} if artifact is None else {"artifact": artifact}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {prefix: value} if prefix else {}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def _shown(value: Any) -> str:
    if value is None:
        return "absent"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 72 else f"{text[:69]}…"
