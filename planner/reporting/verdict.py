"""What came out, in one sentence, and the table of figures below it."""

from __future__ import annotations

from statistics import fmean, median
from typing import Literal, NamedTuple

from planner.case.device import Device
from planner.case.evidence import Evidence
from planner.case.hit_rate import span
from planner.reporting import words
from planner.reporting.figures import certified
from planner.reporting.findings import Findings
from planner.tuning.score import Score

NO_BOUND = 1e9
"""What the tuner writes where too few rounds give no bound at all."""

NAMES = {"latency": "seconds a call", "memory": "peak memory", "lpips": "mean LPIPS"}
"""What the limits of a goal are about."""

UNITS = {"latency": words.seconds, "memory": words.size, "lpips": words.lpips}
"""How figures under the limits of a goal are written."""

Tone = Literal["good", "fair", "bad"]


class Headline(NamedTuple):
    """The verdict: its word and tone, the speed-up, the plan, the sentence, and what it means."""

    status: str
    tone: Tone
    speed: str
    plan: str
    sentence: str
    meaning: str


class Row(NamedTuple):
    """One line of the summary: a figure untouched and tuned, its bound, and its limit."""

    name: str
    untouched: str
    tuned: str
    bound: str = ""
    limit: str = ""


def headline(found: Findings) -> Headline:
    """Return the verdict of a study, however far it has come."""
    evidence = found.policy.evidence if found.policy else None
    if evidence is not None:
        return _concluded(found, evidence)
    if found.status == "not certified":
        return _not_certified(found)
    if found.status == "no plan meets the goal":
        return _nothing(found)
    return _in_search(found)


def summary(found: Findings) -> tuple[Row, ...]:
    """Return the summary's rows; empty while nothing was measured."""
    evidence = found.policy.evidence if found.policy else None
    return _rows_of_evidence(found, evidence) if evidence is not None else _rows_of_ledger(found)


def describe_device(device: Device) -> str:
    """Return a device in a few words: name and threads, or name and memory."""
    if device.kind == "cpu":
        return f"{device.name}, {words.count(device.threads, 'thread')}"
    return f"{device.name}, {words.size(device.memory_bytes)}"


def _concluded(found: Findings, evidence: Evidence) -> Headline:
    latency, distance = evidence.latency, evidence.lpips
    ratio = latency.ratio
    least = "" if ratio.upper is None else f" (at least {words.factor(ratio.upper)})"
    said = (
        f"takes {words.seconds(latency.tuned.value)} where the untouched call takes "
        f"{words.seconds(latency.baseline.value)}: {words.factor(ratio.value)} as fast{least}"
    )
    if distance is not None:
        bound = "" if distance.mean.upper is None else f" (at most {distance.mean.upper:.4f})"
        cap = found.goal.max_lpips
        under = ", quality not constrained" if cap is None else f", cap {cap:.4g}"
        said += f", with mean LPIPS {words.lpips(distance.mean.value)}{bound}{under}"
        kind = "unseen" if found.status == "certified" else "search"
        said += f", on {words.count(distance.n, f'{kind} prompt')}"
    said += f", measured on {describe_device(found.case.device)}."
    tone: Tone = "good" if found.status == "certified" else "fair"
    return Headline(found.status, tone, f"{words.factor(ratio.value)} as fast", str(found.plan),
                    said, _meaning(found, evidence))  # fmt: skip


def _meaning(found: Findings, evidence: Evidence) -> str:
    parts = []
    if found.status != "certified":
        parts.append(
            "Not certified: the figures come from the prompts that also chose the plan, and the "
            "winner of a comparison looks better than it is."
        )
    longest = evidence.latency.holds_while_baseline_within
    if longest is not None:
        parts.append(
            "What was certified is the ratio to the untouched call. The budget therefore holds "
            f"while the untouched pipeline renders in at most {words.seconds(longest)} here; on a "
            "slower or busier machine both calls stretch alike and the budget is missed."
        )
    return " ".join(parts)


def _not_certified(found: Findings) -> Headline:
    tested = len(found.verdicts)
    none = "did not keep" if tested == 1 else f"like all {tested} finalists did not keep"
    return Headline(
        "not certified", "bad", "No policy was written", str(found.plan),
        f"met the goal ({words.limits(found.goal)}) on the search prompts, but {none} inside "
        f"every limit on unseen ones{_failing(found)}; measured on "
        f"{describe_device(found.case.device)}.",
        "The certificate below has every figure. Loosen the limit that was missed, or begin anew "
        "with --fresh and more --search-time; these prompts, opened once more, then ask for "
        "tighter bounds.",
    )  # fmt: skip


def _failing(found: Findings) -> str:
    """Name the bounds that the shown finalist missed."""
    verdict = found.verdict_of(found.plan)
    if verdict is None:
        return ""
    missed = [
        f"{NAMES[name]} at most {UNITS[name](bound.upper)} instead of "
        f"{UNITS[name](bound.limit)}"
        for name, bound in verdict.bounds.items() if not bound.holds and bound.upper < NO_BOUND
    ]  # fmt: skip
    return f" ({', '.join(missed)})" if missed else ""


def _nothing(found: Findings) -> Headline:
    return Headline(
        "no plan meets the goal", "bad", "No policy was written", str(found.plan or ""),
        _nearest(found), "Raise the budget or the cap, or search longer: the study goes on with "
        "--resume.",
    )  # fmt: skip


def _nearest(found: Findings) -> str:
    if found.plan is None or found.trial is None:
        return f"No plan could be measured for {words.limits(found.goal)}."
    return (
        f"is the fastest of {words.count(len(found.scores), 'measured plan')}: "
        f"{_figures(found.scores[found.trial.number])}. The goal is {words.limits(found.goal)}, "
        f"on {describe_device(found.case.device)}."
    )


def _figures(score: Score) -> str:
    near = "no image compared" if score.lpips is None else f"mean LPIPS {words.lpips(score.lpips)}"
    return f"{words.seconds(score.seconds)}, {near}"


def _in_search(found: Findings) -> Headline:
    """Describe a study by its search alone: unfinished, or finished with the policy elsewhere."""
    over = found.status != "unfinished"
    meaning = (
        "The policy file with its evidence was not at hand when this page was written." if over
        else "The study goes on with the same command and --resume."
    )  # fmt: skip
    speed = "Concluded" if over else "Nothing concluded yet"
    if found.plan is None or found.trial is None:
        said = f"No plan has been measured yet. The goal is {words.limits(found.goal)}."
        return Headline(found.status, "fair", speed, "", said, meaning)
    score = found.scores[found.trial.number]
    inside = "is the best plan" if score.inside else "is the fastest, not yet inside the limits,"
    said = (f"{inside} after {words.count(len(found.candidates), 'trial')}: {_figures(score)}, on "
            f"search prompts. The goal is {words.limits(found.goal)}.")  # fmt: skip
    return Headline(found.status, "fair", speed, str(found.plan), said, meaning)


def _rows_of_evidence(found: Findings, evidence: Evidence) -> tuple[Row, ...]:
    latency, distance, goal = evidence.latency, evidence.lpips, found.goal
    noise = found.noise
    upper = latency.tuned.upper
    rows = [
        Row("seconds a call, median", words.seconds(latency.baseline.value),
            words.seconds(latency.tuned.value),
            words.at_most(None if upper is None else words.seconds(upper)),
            "" if goal.budget_seconds is None else words.seconds(goal.budget_seconds)),
        Row("share of the untouched call", "1", words.ratio(latency.ratio.value),
            words.at_most(None if latency.ratio.upper is None
                          else words.ratio(latency.ratio.upper))),
        Row("90 % of calls within", "–", words.seconds(latency.p90_seconds),
            f"{latency.rounds} rounds"),
    ]  # fmt: skip
    if distance is not None:
        mean = distance.mean
        rows += [
            Row("mean LPIPS", f"{words.lpips(distance.noise_floor)} (noise floor)",
                words.lpips(mean.value),
                words.at_most(None if mean.upper is None else words.lpips(mean.upper)),
                "" if goal.max_lpips is None else f"{goal.max_lpips:.4g}"),
            Row("LPIPS: half, nine tenths, worst", "–",
                " · ".join(map(words.lpips, (distance.q50, distance.q90, distance.worst))),
                words.count(distance.n, "prompt")),
        ]  # fmt: skip
        if distance.share_under_cap_lower is not None:
            under = sum(value <= (goal.max_lpips or 0.0) for value in distance.per_prompt)
            rows.append(Row("prompts under the cap", "–", f"{under} of {distance.n}",
                            f"≥ {distance.share_under_cap_lower:.0%} of all prompts"))  # fmt: skip
    rows += [
        Row(f"forwards that {name} reuses", "–", f"{rate.value:.1%}",
            f"{span((rate.low, rate.high))} expected of a call")
        for name, rate in (evidence.hit_rates or {}).items()
    ]  # fmt: skip
    rows.append(Row("peak memory", words.size(evidence.memory_baseline.value),
                    words.size(evidence.memory_tuned.value), "",
                    "" if goal.vram_bytes is None else words.size(goal.vram_bytes)))  # fmt: skip
    first = words.seconds(noise.first_call_seconds) if noise else "–"
    rows += [
        Row("first call", first, words.seconds(evidence.first_call_seconds)),
        Row("putting the plan on", "–", words.seconds(evidence.apply_seconds)),
    ]
    if evidence.pays_off_after_images is not None:
        images = words.count(evidence.pays_off_after_images, "image")
        rows.append(Row("start-up pays off after", "–", images))
    return tuple(rows)


def _rows_of_ledger(found: Findings) -> tuple[Row, ...]:
    trial, noise, goal = found.trial, found.noise, found.goal
    if trial is None or trial.measured is None or noise is None:
        return ()
    measured = trial.measured
    share = median(measured.ratios)
    near = fmean(measured.lpips) if measured.lpips else None
    unseen = certified(found)
    budget = "" if goal.budget_seconds is None else words.seconds(goal.budget_seconds)
    cap = "" if goal.max_lpips is None else f"{goal.max_lpips:.4g}"
    calls = words.count(len(measured.ratios), "search call")
    rows = [
        Row("seconds a call, median", words.seconds(noise.reference_seconds),
            words.seconds(share * noise.reference_seconds), calls, budget),
        Row("share of the untouched call", "1", words.ratio(share), calls),
        Row("mean LPIPS", f"{words.lpips(noise.lpips)} (noise floor)", words.lpips(near),
            words.count(len(measured.lpips), "search prompt"), cap),
    ]  # fmt: skip
    if unseen is not None:
        rows += _rows_unseen(unseen.n, unseen.seconds, unseen.lpips, noise.reference_seconds,
                             budget, cap)  # fmt: skip
    rows.append(Row("peak memory", words.size(noise.memory_bytes),
                    words.size(measured.memory_bytes), "",
                    "" if goal.vram_bytes is None else words.size(goal.vram_bytes)))  # fmt: skip
    return tuple(rows)


def _rows_unseen(
    n: int, seconds: float, lpips: float, reference: float, budget: str, cap: str
) -> list[Row]:
    seen = words.count(n, "unseen prompt")
    return [
        Row("seconds a call, unseen prompts", words.seconds(reference), words.seconds(seconds),
            seen, budget),
        Row("mean LPIPS, unseen prompts", "–", words.lpips(lpips), seen, cap),
    ]  # fmt: skip
