"""Every trial, every finalist, every rejected pass, and the environment, as rows of text."""

from __future__ import annotations

from statistics import median
from typing import Literal, NamedTuple

from planner.case.outcome import Failed
from planner.case.prompts import Prompt, hash_prompts
from planner.plans.plan import Plan
from planner.reporting import words
from planner.reporting.figures import foretold
from planner.reporting.findings import Findings
from planner.reporting.verdict import NAMES, NO_BOUND, UNITS, describe_device
from planner.trials.trial import Trial
from planner.tuning.certify import ALPHA, Bound, Verdict
from planner.tuning.foresight import rank_correlation


class TrialRow(NamedTuple):
    """One trial as written in the table; `mark` is winner, front, inside, or empty."""

    number: int
    plan: str
    origin: str
    predicted: str
    seconds: str
    ratio: str
    lpips: str
    prompts: str
    outcome: str
    evidence: str
    mark: str


class BoundRow(NamedTuple):
    """One limit's figure in a test, its upper bound, and whether that holds."""

    name: str
    value: str
    upper: str
    limit: str
    holds: bool


class FinalistRow(NamedTuple):
    """One finalist's test, in the order fixed beforehand."""

    order: int
    plan: str
    result: Literal["certified", "failed", "not tested"]
    said: str
    bounds: tuple[BoundRow, ...]


class BoughtRow(NamedTuple):
    """What one pass saved and cost, in words."""

    name: str
    seconds: str
    lpips: str
    said: str


class Group(NamedTuple):
    """Facts of the environment under one heading, as name and value."""

    name: str
    facts: tuple[tuple[str, str], ...]


def trial_rows(found: Findings) -> tuple[TrialRow, ...]:
    """Return every trial in order, failed and lost ones included."""
    front = {trial.number for trial in found.front}
    rows = [_trial_row(found, trial, front) for trial in found.trials]
    rows += [
        TrialRow(int(body["number"]), str(body["plan"]), "–", "–", "–", "–", "–", "–",
                 "lost: the tuner stopped before it was finished", "", "failed")
        for body in found.lost
    ]  # fmt: skip
    return tuple(sorted(rows, key=lambda row: row.number))


def skipped_rows(found: Findings) -> tuple[tuple[str, str], ...]:
    """Return every plan that was ruled out by prediction, and what it would take at best."""
    return tuple(
        (str(one.plan), f"at best {words.seconds(one.predicted.get('low'))}, expected "
                        f"{words.seconds(one.predicted.get('seconds'))}")
        for one in found.skipped
    )  # fmt: skip


def foretold_facts(found: Findings) -> tuple[tuple[str, str], ...]:
    """Return how well the trials were predicted: ranks, size of the error, intervals that held."""
    seen = foretold(found)
    if not seen or found.reference is None:
        return ()
    rank = rank_correlation(found.trials, found.reference)
    off = median(abs(one.predicted / one.measured - 1) for one in seen)
    trials = words.count(len(seen), "trial")
    return (
        ("rank correlation", f"too few to rank, {trials}" if rank is None
         else f"{rank:.2f} (Spearman's), {trials}"),
        ("median error", f"{off:.0%} of what was measured"),
        ("inside the interval", f"{sum(one.inside for one in seen)} of {len(seen)}"),
        ("skipped unmeasured", words.count(len(found.skipped), "plan")),
    )  # fmt: skip


def finalist_rows(found: Findings) -> tuple[FinalistRow, ...]:
    """Return the certificate's tests in order; empty where none was begun."""
    plans = [Plan.model_validate(body) for body in (found.finalists or {}).get("plans", [])]
    over = any(verdict.passed for verdict in found.verdicts)
    return tuple(
        _finalist_row(index, plan, found.verdict_of(plan), over)
        for index, plan in enumerate(plans, start=1)
    )


def certificate_facts(found: Findings) -> tuple[tuple[str, str], ...]:
    """Return how the certificate was reached: method, levels, openings, prompts."""
    fixed = found.finalists
    if fixed is None:
        return ()
    evidence = found.policy.evidence if found.policy else None
    method = evidence.certificate.method if evidence and evidence.certificate else ""
    limits = len(found.goal.constraints)
    facts = [
        ("joint level alpha", f"{ALPHA:g}"),
        ("level of one test", f"{fixed.get('alpha_each', float('nan')):.4g} = {ALPHA:g} / "
         f"({words.count(int(fixed.get('openings', 1)), 'opening')} × "
         f"{words.count(len(fixed.get('plans', [])), 'finalist')} × "
         f"{words.count(limits, 'limit')})"),
        ("unseen prompts", f"{fixed.get('n', '–')}, sha256 {fixed.get('prompts', '–')}"),
        ("openings of these prompts", str(fixed.get("openings", "–"))),
    ]  # fmt: skip
    return tuple(([("method", method)] if method else []) + facts)


def bought_rows(found: Findings) -> tuple[BoughtRow, ...]:
    """Return for every pass of the winner what leaving it out changes."""
    if found.trial is None:
        return ()
    with_all = found.scores[found.trial.number].seconds
    rows = []
    for one in found.bought:
        if one.seconds is None:
            rows.append(BoughtRow(one.name, "–", "–", f"without it: failed, {one.failed}"))
            continue
        saved = one.seconds - with_all
        verb = "saves" if saved >= 0 else "costs"
        said = f"{verb} {words.seconds(abs(saved))} a call"
        if one.lpips is not None and one.lpips_with is not None:
            lost = one.lpips_with - one.lpips
            verb = "adds" if lost >= 0 else "takes off"
            said += f" and {verb} {abs(lost):.4f} LPIPS ({words.count(one.n, 'prompt')})"
        rows.append(BoughtRow(one.name, words.seconds(one.seconds), words.lpips(one.lpips), said))
    return tuple(rows)


def environment(found: Findings) -> tuple[Group, ...]:
    """Return device, libraries, reference call, study and fingerprints."""
    return (_study(found), _device(found), _call(found), _baseline(found), _fingerprints(found))


def _trial_row(found: Findings, trial: Trial, front: set[int]) -> TrialRow:
    plan, origin = str(trial.plan), trial.origin
    predicted = words.seconds(trial.predicted.get("seconds"))
    if isinstance(trial.outcome, Failed):
        said = f"failed at {trial.outcome.stage}: {trial.outcome.reason}"
        return TrialRow(trial.number, plan, origin, predicted, "–", "–", "–", "–", said,
                        trial.outcome.evidence, "failed")  # fmt: skip
    measured, score = trial.outcome, found.scores.get(trial.number)
    shown = trial == found.trial
    inside = score is not None and score.inside and not measured.stopped_early
    said = measured.stopped_early or ("inside the limits" if inside else _outside(found, trial))
    mark = "winner" if shown else "front" if trial.number in front else "inside" if inside else ""
    return TrialRow(
        trial.number, plan, origin, predicted, words.seconds(score.seconds if score else None),
        words.ratio(median(measured.ratios)), words.lpips(score.lpips if score else None),
        str(len(measured.lpips)), said, "", mark,
    )  # fmt: skip


def _outside(found: Findings, trial: Trial) -> str:
    """Name the limits that a measured plan misses."""
    score = found.scores.get(trial.number)
    over = score.over if score else ()
    if not over:
        return "no image compared" if score and score.objective is None else "measured"
    return "over the limit: " + ", ".join(NAMES[name] for name in over)


def _finalist_row(order: int, plan: Plan, verdict: Verdict | None, over: bool) -> FinalistRow:
    if verdict is None:
        said = "an earlier finalist passed" if over else "its turn has not come"
        return FinalistRow(order, str(plan), "not tested", said, ())
    said = verdict.stopped_early or (
        f"every bound holds on {words.count(verdict.n, 'prompt')}" if verdict.passed
        else f"a bound lies over its limit on {words.count(verdict.n, 'prompt')}"
    )  # fmt: skip
    bounds = tuple(_bound_row(name, bound) for name, bound in verdict.bounds.items())
    return FinalistRow(order, str(plan), "certified" if verdict.passed else "failed", said, bounds)


def _bound_row(name: str, bound: Bound) -> BoundRow:
    write = UNITS[name]
    upper = write(bound.upper) if bound.upper < NO_BOUND or name == "memory" else "no bound"
    return BoundRow(NAMES[name], write(bound.value), upper, write(bound.limit), bound.holds)


def _study(found: Findings) -> Group:
    facts, asked, end = found.facts, found.request, found.end or {}
    search = [Prompt.model_validate(one) for one in asked["split"]["search"]]
    certify = [Prompt.model_validate(one) for one in asked["split"]["certify"]]
    told = [
        ("command", str(facts.get("command") or "–")),
        ("started (UTC)", str(facts.get("started") or "–")),
        ("goal", f"{words.limits(found.goal)}; prefer {found.goal.prefer}"),
        ("sampler, seed", f"{asked.get('sampler', '–')}, {asked.get('seed', '–')}"),
        ("asked for passes", _listed(asked.get("with_passes"))),
        ("ruled out passes", _listed(asked.get("without_passes"))),
        ("search prompts", f"{len(search)}, sha256 {hash_prompts(search)}"),
        ("certification prompts", f"{len(certify)}, sha256 {hash_prompts(certify)}"),
    ]
    if "seconds" in end:
        told.append(("whole study", words.seconds(float(end["seconds"]))))
    if "share_in_pipeline" in end:
        told.append(("share in pipeline calls", f"{float(end['share_in_pipeline']):.1%}"))
    if "overhead_seconds_per_trial" in end:
        spent = words.seconds(float(end["overhead_seconds_per_trial"]))
        told.append(("overhead a trial", spent))
    if found.policy is not None:
        told += [("policy digest", found.policy.digest()),
                 ("commit", found.policy.provenance.commit or "–")]  # fmt: skip
    return Group("Study", tuple(told))


def _device(found: Findings) -> Group:
    device = found.case.device
    versions = device.libraries | {k: str(v) for k, v in found.facts.get("versions", {}).items()}
    told = [("device", describe_device(device)), ("memory", words.size(device.memory_bytes))]
    if device.capability is not None:
        told.append(("compute capability", ".".join(map(str, device.capability))))
    if device.driver:
        told.append(("driver", device.driver))
    told.append(("instruction sets", ", ".join(device.features) or "–"))
    return Group("Device and libraries", (*told, *sorted(versions.items())))


def _call(found: Findings) -> Group:
    model, workload = found.case.model, found.case.workload
    told = [("model", model.id), ("revision", model.revision or "–"),
            ("pipeline", model.pipeline), ("denoiser", model.traits.denoiser_class),
            ("batch size", str(workload.batch_size)), ("dtype", workload.dtype),
            ("guidance", workload.guidance)]  # fmt: skip
    told += [(name, repr(value)) for name, value in workload.call.items()]
    return Group("Reference call", tuple(told))


def _baseline(found: Findings) -> Group:
    noise = found.noise
    if noise is None:
        return Group("Noise floor", (("untouched call", "not measured yet"),))
    return Group("Noise floor", (
        ("untouched call, median", words.seconds(noise.reference_seconds)),
        ("middle half of calls", f"± {noise.spread:.1%}"),
        ("LPIPS to itself, mean", words.lpips(noise.lpips)),
        ("LPIPS to itself, 95 %", words.lpips(noise.lpips_p95)),
        ("peak memory", words.size(noise.memory_bytes)),
        ("loading", words.seconds(noise.load_seconds)),
        ("first call", words.seconds(noise.first_call_seconds)),
    ))  # fmt: skip


def _fingerprints(found: Findings) -> Group:
    model = found.case.model
    told = [
        (f"{name} ({part.class_name})",
         f"config {part.config[:16]}" + (f", weights {part.weights[:16]}" if part.weights else ""))
        for name, part in model.components.items()
    ]  # fmt: skip
    told += [("adapter", adapter) for adapter in model.adapters]
    return Group("Fingerprints", tuple(told))


def _listed(names: object) -> str:
    return ", ".join(map(str, names)) if isinstance(names, list) and names else "none"
