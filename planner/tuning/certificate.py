"""Runs the certificate in a worker: finalists written first, then round after round."""

from __future__ import annotations

from planner.case.goal import Goal
from planner.case.prompts import Prompt, Sample, by_call
from planner.errors import TrialFailed
from planner.plans.plan import Plan
from planner.trials.protocol import Put
from planner.trials.supervisor import Supervisor
from planner.tuning.certify import Rounds, Verdict, alpha_each, certify
from planner.tuning.choose import finalists
from planner.tuning.noise import Noise, again_if_it_died, reference_image, render_untouched
from planner.tuning.race import Race
from planner.tuning.session import Progress, Session, openings


class Certification:
    """Tests the finalists of one study; every finished round is in the ledger.

    `put` says how the last tested finalist started up; None where an earlier run tested it.
    """

    def __init__(
        self, session: Session, worker: Supervisor, race: Race, goal: Goal, noise: Noise,
        progress: Progress,
    ) -> None:  # fmt: skip
        self.session, self.worker, self.race = session, worker, race
        self.goal, self.noise, self.progress = goal, noise, progress
        self._deadline = 120 + 8 * noise.reference_seconds
        self._on: Plan | None = None
        self.put: Put | None = None
        self.plans, self.openings = self._fixed()

    def run(self) -> tuple[list[Verdict], Rounds]:
        """Test finalists in their order until one passes; returns verdicts and the last rounds."""
        prompts = self.session.request.split.certify
        calls = by_call(prompts, self.worker.case.workload.batch_size)
        level = alpha_each(len(self.plans), self.goal, self.openings)
        verdicts: list[Verdict] = []
        rounds = Rounds(candidate=(), baseline=())
        for plan in self.plans:
            self.progress.say(f"certifying {plan} on {len(prompts)} unseen prompts")
            try:
                verdict, rounds = certify(
                    plan, calls, self.goal, self.noise.reference_seconds, level, self._play
                )
            except TrialFailed as error:
                verdict = Verdict(plan=plan, passed=False, bounds={}, n=0, alpha_each=level,
                                  stopped_early=str(error))  # fmt: skip
            self.session.ledger.append("verdict", verdict.model_dump(mode="json"))
            verdicts.append(verdict)
            if verdict.passed:
                break
        return verdicts, rounds

    def _fixed(self) -> tuple[tuple[Plan, ...], int]:
        """Return finalists and openings, from the ledger where a killed run wrote them."""
        written = self.session.ledger.bodies("finalists")
        request = self.session.request
        if written:
            body = written[-1]
            return tuple(Plan.model_validate(p) for p in body["plans"]), int(body["openings"])
        plans = finalists(self.session.trials(), self.goal, self.noise.reference_seconds)
        opened = 1 + openings(request, self.worker.case.device)
        self.session.ledger.append("finalists", {
            "plans": [plan.model_dump(mode="json") for plan in plans],
            "names": [str(plan) for plan in plans],
            "prompts": request.split.certify_hash,
            "openings": opened,
            "alpha_each": alpha_each(len(plans), self.goal, opened),
            "n": len(request.split.certify),
        })  # fmt: skip
        return plans, opened

    def _play(self, plan: Plan, call: tuple[Prompt, ...], index: int) -> tuple[Sample, Sample]:
        """Render one round, or read it from the ledger where an earlier run finished it."""
        name = plan.digest()[:12]
        ids = tuple(prompt.id for prompt in call)
        done = _sample(self.session, f"certify:{name}", ids)
        beside = _sample(self.session, f"certify-baseline:{name}", ids)
        if done is not None and beside is not None:
            return done, beside
        if self._on != plan:
            self.put = again_if_it_died(
                lambda: self.race.put(plan, self.noise.reference_seconds, as_deployed=True)
            )
            self._on = plan
        images = self.session.images
        known = all(reference_image(images, prompt).exists() for prompt in call)
        untouched = render_untouched(self.worker, call, self._deadline, save=not known)
        ours = again_if_it_died(
            lambda: self.worker.render("candidate", call, self._deadline)[0]
        )
        # Both lines only now: a round counts as a whole, since its ratio needs both.
        untouched = self.session.keep(untouched, f"certify-baseline:{name}")
        self.progress.tick("certificate", index + 1, len(self.session.request.split.certify),
                           str(plan))  # fmt: skip
        return self.session.keep(ours, f"certify:{name}"), untouched


def _sample(session: Session, role: str, ids: tuple[str, ...]) -> Sample | None:
    found = [s for s in session.ledger.samples(role) if s.prompts == ids]
    return found[-1] if found else None
