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

    `put` says how the last tested finalist started up; None where an earlier run rendered it.
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
        reached = map(Verdict.model_validate, self.session.ledger.bodies("verdict"))
        known = {verdict.plan: verdict for verdict in reached}
        verdicts: list[Verdict] = []
        for plan in self.plans:
            self.put = None
            verdicts.append(known.get(plan) or self._test(plan, calls))
            if verdicts[-1].passed:
                break
        return verdicts, self._rounds(verdicts[-1].plan, calls)

    def _test(self, plan: Plan, calls: list[tuple[Prompt, ...]]) -> Verdict:
        """Test one finalist and write the verdict: a hypothesis is tested once, however it ends."""
        request = self.session.request
        over = self.session.elapsed - request.search_seconds
        late = f", {over:.0f} s after the search time ended" if over > 0 else ""
        self.progress.say(f"certifying {plan} on {len(request.split.certify)} unseen prompts{late}")
        level = alpha_each(len(self.plans), self.goal, self.openings)
        try:
            verdict, _ = certify(
                plan, calls, self.goal, self.noise.reference_seconds, level, self._play
            )
        except TrialFailed as error:
            verdict = Verdict(plan=plan, passed=False, bounds={}, n=0, alpha_each=level,
                              stopped_early=str(error))  # fmt: skip
        self.session.ledger.append("verdict", verdict.model_dump(mode="json"))
        return verdict

    def _rounds(self, plan: Plan, calls: list[tuple[Prompt, ...]]) -> Rounds:
        """Read the rounds of a finalist from the ledger."""
        pairs = [pair for call in calls if (pair := self._played(plan, call)) is not None]
        return Rounds(candidate=tuple(ours for ours, _ in pairs),
                      baseline=tuple(untouched for _, untouched in pairs))  # fmt: skip

    def _played(self, plan: Plan, call: tuple[Prompt, ...]) -> tuple[Sample, Sample] | None:
        """Return a round that stands whole in the ledger."""
        name, ids = plan.digest()[:12], tuple(prompt.id for prompt in call)
        ours = _sample(self.session, f"certify:{name}", ids)
        untouched = _sample(self.session, f"certify-baseline:{name}", ids)
        return None if ours is None or untouched is None else (ours, untouched)

    def _fixed(self) -> tuple[tuple[Plan, ...], int]:
        """Return finalists and openings, from the ledger where a killed run wrote them."""
        written = self.session.ledger.bodies("finalists")
        request = self.session.request
        if written:
            body = written[-1]
            return tuple(Plan.model_validate(p) for p in body["plans"]), int(body["openings"])
        opened = 1 + openings(request, self.worker.case.device)
        plans = finalists(
            self.session.trials(), self.goal, self.noise.reference_seconds,
            n=len(request.split.certify), openings=opened,
        )  # fmt: skip
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
        done = self._played(plan, call)
        if done is not None:
            return done
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
        name = plan.digest()[:12]
        untouched = self.session.keep(untouched, f"certify-baseline:{name}")
        ours = self.session.keep(ours, f"certify:{name}")
        batch = self.worker.case.workload.batch_size
        calls = len(self.session.request.split.certify) // batch
        self.progress.tick("certificate", index + 1, calls, str(plan))
        return ours, untouched


def _sample(session: Session, role: str, ids: tuple[str, ...]) -> Sample | None:
    found = [s for s in session.ledger.samples(role) if s.prompts == ids]
    return found[-1] if found else None
