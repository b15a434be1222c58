"""What a study's ledger says, read once for every figure and table of the page."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from planner.case.case import Case
from planner.case.goal import Goal
from planner.case.prompts import Prompt, Sample
from planner.plans.plan import Plan
from planner.trials.ledger import Ledger
from planner.trials.trial import Skipped, Trial
from planner.tuning.certify import Rounds, Verdict
from planner.tuning.choose import fastest, front, incumbent
from planner.tuning.noise import Noise, resolve
from planner.tuning.score import Score, scored

if TYPE_CHECKING:
    from planner.policy.file import PolicyFile

Status = Literal[
    "certified", "measured", "predicted", "not certified", "no plan meets the goal", "unfinished"
]


class Bought(NamedTuple):
    """The winner less one pass, compared on the prompts that both have seen.

    `seconds` and `lpips` are without the pass; `lpips_with` is the winner's mean on the same
    prompts; `failed` says why there are no figures.
    """

    name: str
    seconds: float | None
    lpips: float | None
    lpips_with: float | None
    n: int
    failed: str | None = None


@dataclass(frozen=True)
class Findings:
    """A study as its ledger tells it, finished or not, with the policy that came of it, if any."""

    case: Case
    goal: Goal
    prompts: dict[str, Prompt]
    facts: dict[str, Any]
    request: dict[str, Any]
    trials: tuple[Trial, ...]
    samples: tuple[Sample, ...]
    noise: Noise | None = None
    finalists: dict[str, Any] | None = None
    verdicts: tuple[Verdict, ...] = ()
    lost: tuple[dict[str, Any], ...] = ()
    skipped: tuple[Skipped, ...] = ()
    end: dict[str, Any] | None = None
    policy: PolicyFile | None = field(default=None, compare=False)

    @cached_property
    def reference(self) -> float | None:
        """Return the seconds of the untouched call, the unit of every latency here."""
        return self.noise.reference_seconds if self.noise else None

    @cached_property
    def scores(self) -> dict[int, Score]:
        """Return the score of every measured trial by its number."""
        if self.reference is None:
            return {}
        pairs = scored(list(self.trials), self.goal, self.reference)
        return {trial.number: found for trial, found in pairs}

    @cached_property
    def candidates(self) -> tuple[Trial, ...]:
        """Return the trials of the search, without those that only ask what a pass bought."""
        return tuple(trial for trial in self.trials if trial.origin != "bought")

    @cached_property
    def front(self) -> tuple[Trial, ...]:
        """Return the measured plans that no other beats in both seconds and mean LPIPS.

        Trials that saw fewer prompts than the others do not compare, and are left out.
        """
        prompts = len(self.request["split"]["search"])
        whole = [t for t in self.trials if t.measured and len(t.measured.lpips) >= prompts]
        return front(whole, self.goal, self.reference) if self.reference is not None else ()

    @cached_property
    def status(self) -> Status:
        """Return how the study stands."""
        if self.policy is not None:
            return self.policy.status
        if self.end is None:
            return "unfinished"
        said = self.end.get("status")
        if said == "certified" or said == "measured":
            return "certified" if said == "certified" else "measured"
        return "not certified" if self.verdicts else "no plan meets the goal"

    @cached_property
    def plan(self) -> Plan | None:
        """Return the plan that the page is about: the winner, or the best that can be shown."""
        if self.policy is not None:
            return self.policy.as_plan()
        passed = next((verdict.plan for verdict in self.verdicts if verdict.passed), None)
        if passed is not None:
            return passed
        if self.reference is None:
            return None
        if self.verdicts:
            return self.verdicts[0].plan
        found = incumbent(self.trials, self.goal, self.reference) or fastest(
            self.candidates, self.goal, self.reference
        )
        return found[0].plan if found else None

    @cached_property
    def trial(self) -> Trial | None:
        """Return the search trial of the plan that the page is about."""
        return self.trial_of(self.plan) if self.plan is not None else None

    def trial_of(self, plan: Plan) -> Trial | None:
        """Return the last measured trial of a plan."""
        found = [trial for trial in self.trials if trial.plan == plan and trial.measured]
        return found[-1] if found else None

    def verdict_of(self, plan: Plan | None) -> Verdict | None:
        """Return how a finalist did on unseen prompts."""
        return next((verdict for verdict in self.verdicts if verdict.plan == plan), None)

    def rounds(self, plan: Plan | None) -> Rounds | None:
        """Return the certification calls of a finalist, each with the untouched call beside it.

        A round whose other half was never written, since the tuner died between them, is left out.
        """
        if plan is None:
            return None
        role = plan.digest()[:12]
        theirs = self._samples(f"certify-baseline:{role}")
        ours = {k: s for k, s in self._samples(f"certify:{role}").items() if k in theirs}
        beside = tuple(theirs[prompts] for prompts in ours)
        return Rounds(candidate=tuple(ours.values()), baseline=beside) if ours else None

    def distances(self, plan: Plan | None) -> dict[str, float]:
        """Return the LPIPS of a plan's images by prompt id: unseen prompts where they were tried.

        A trial's distances stand in the order of the search prompts.
        """
        rounds = self.rounds(plan)
        if rounds is not None:
            pairs = ((s.prompts, s.lpips) for s in rounds.candidate)
            return {k: v for ids, values in pairs for k, v in zip(ids, values, strict=False)}
        trial = self.trial_of(plan) if plan is not None else None
        if trial is None or trial.measured is None:
            return {}
        asked = [Prompt.model_validate(one).id for one in self.request["split"]["search"]]
        return dict(zip(asked, trial.measured.lpips, strict=False))

    @cached_property
    def bought(self) -> tuple[Bought, ...]:
        """Return what the plan loses without each of its passes, where that was measured."""
        if self.plan is None or self.trial is None or len(self.plan.passes) < 2:
            return ()
        found = (self._without(name) for name in self.plan.names)
        return tuple(one for one in found if one is not None)

    def _without(self, name: str) -> Bought | None:
        assert self.plan is not None and self.trial is not None
        plan = self.plan.without(name)
        tried = [trial for trial in self.trials if trial.plan == plan]
        if not tried:
            return None
        if tried[-1].measured is None:
            return Bought(name, None, None, None, 0, getattr(tried[-1].outcome, "reason", ""))
        score = self.scores[tried[-1].number]
        mine = self.trial.measured.lpips if self.trial.measured else ()
        n = min(len(mine), len(tried[-1].measured.lpips))
        theirs = tried[-1].measured.lpips[:n]
        if n == 0:
            return Bought(name, score.seconds, None, None, 0)
        return Bought(name, score.seconds, sum(theirs) / n, sum(mine[:n]) / n, n)

    def _samples(self, role: str) -> dict[tuple[str, ...], Sample]:
        """Return the last sample of a role for each call's prompts."""
        return {sample.prompts: sample for sample in self.samples if sample.role == role}


def read_findings(folder: Path, policy: PolicyFile | None) -> Findings:
    """Read a study's ledger, which may still be written to.

    Raises `UsageError` if there is none, `InvalidFile` if it is damaged.
    """
    ledger = Ledger.read(folder / "ledger.jsonl")
    facts = ledger.study
    case = Case.model_validate(facts.pop("case"))
    request = facts.pop("request")
    noises = [Noise.model_validate(body) for body in ledger.bodies("noise")]
    goal = Goal.model_validate(request["goal"])
    if noises and goal.quality == "lossless":
        goal = resolve(goal, noises[0])
    asked = [Prompt.model_validate(p) for part in ("search", "certify")
             for p in request["split"][part]]  # fmt: skip
    finalists, ends = ledger.bodies("finalists"), ledger.bodies("end")
    return Findings(
        case=case, goal=goal, prompts={prompt.id: prompt for prompt in asked},
        facts=facts, request=request, trials=tuple(ledger.trials()),
        samples=tuple(ledger.samples()), noise=noises[0] if noises else None,
        finalists=finalists[-1] if finalists else None,
        verdicts=tuple(Verdict.model_validate(body) for body in ledger.bodies("verdict")),
        lost=tuple(ledger.bodies("lost")), skipped=tuple(ledger.skipped()),
        end=ends[-1] if ends else None, policy=policy,
    )  # fmt: skip
