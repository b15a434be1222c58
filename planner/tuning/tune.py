"""The main job, step by step: baseline twice, search, certificate, policy and page."""

from __future__ import annotations

import math
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from planner.case.goal import Goal
from planner.errors import Interrupted, NoPlanMeetsGoal, NotCertified, UsageError
from planner.plans.graph import Graph, build
from planner.run.devices.base import backend
from planner.trials.ledger import refuse_existing
from planner.trials.supervisor import Supervisor
from planner.tuning.certificate import Certification
from planner.tuning.choose import fastest, incumbent
from planner.tuning.conclude import certificate, evidence, policy_path, rounds_of_trial, write
from planner.tuning.estimate import estimate, reserve
from planner.tuning.footing import footing
from planner.tuning.foresight import Foresight, compared, rank_correlation
from planner.tuning.noise import Noise, measure_noise, resolve
from planner.tuning.policies import Conclusion, make_policy, refuse_to_replace
from planner.tuning.race import Race
from planner.tuning.recorded import recorded, without_inert
from planner.tuning.request import TuneRequest, TuneResult
from planner.tuning.search import Search
from planner.tuning.session import Progress, Session, study_folder
from planner.tuning.space import uninformative
from planner.units import format_seconds


def run(
    request: TuneRequest, progress: Progress, *, resume: bool = False, fresh: bool = False
) -> TuneResult:
    """Tune as asked and return what was concluded; the policy is written to `request.out`.

    Raises `NoPlanMeetsGoal`, `NotCertified` and `Interrupted` with the study kept, `UsageError`
    for a cap below the noise floor or another study in the same place.
    """
    began = time.monotonic()
    device = backend(request.source.device).describe()
    folder = study_folder(request, device)
    if not (resume or fresh):  # before anything is loaded, which may take minutes
        refuse_existing(folder / "ledger.jsonl")
    if not fresh:
        refuse_to_replace(policy_path(request, device), request)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder} ({error.strerror})", value=str(folder),
                         way_out="choose another folder with --out") from error  # fmt: skip
    try:
        return _run(request, progress, folder, began, resume=resume, fresh=fresh)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"stopped; every finished measurement is kept in {folder}",
            way_out="go on with the same command and --resume",
        ) from error


def _run(
    request: TuneRequest, progress: Progress, folder: Path, began: float, *, resume: bool,
    fresh: bool,
) -> TuneResult:  # fmt: skip
    images, log = folder / "images", folder / "worker.log"
    with Supervisor(request.source, request.workload, images, log=log) as worker:
        graph = build(
            worker.case, with_=request.with_passes, without=request.without_passes
        )
        session = Session.begin(
            request, worker.case, _facts(request, graph), resume=resume, fresh=fresh, began=began
        )
        with closing(session.ledger):
            return Tuning(session, worker, graph, progress).run()


class Tuning:
    """One run of one study, from the untouched pipeline to the policy."""

    def __init__(
        self, session: Session, worker: Supervisor, graph: Graph, progress: Progress
    ) -> None:
        self.session, self.worker, self.graph, self.progress = session, worker, graph, progress
        self.request = session.request
        self.race = Race(worker, self.request.split.search, session.artifacts, session.learned)

    def run(self) -> TuneResult:
        """Take every step in turn."""
        self.progress.say(f"tuning {self.request.label} on {self.worker.case.device.name}")
        stands = footing(self.request.source, self.worker.case, self.request.out / ".planner",
                         self.progress)  # fmt: skip
        noise = measure_noise(self.session, self.worker, self.race.calls)
        goal = resolve(self.request.goal, noise)
        self._say_plan(noise)
        seen = recorded(self.session, self.worker, self.race.calls, self.progress)
        self.graph = without_inert(self.graph, seen, self.request.without_passes, self.progress)
        for said in uninformative(self.graph, self.request.domains, seen) if seen else ():
            self.progress.say(f"warning: {said}")
        known = self.session.recordings
        foresight = Foresight(stands, noise.reference_seconds, known) if stands else None
        search = Search(self.session, self.race, self.graph, goal, noise, self.progress, foresight,
                        seen)  # fmt: skip
        reserve = self.reserve(noise)
        self._refuse_too_short(noise, reserve)
        if self.session.ledger.bodies("finalists"):
            ended = "its finalists were fixed in an earlier run"
        else:
            ended = search.run(lambda: self._left(search, reserve))
        self.progress.say(f"search ended: {ended}; best: {search.best()}")
        self._say_foretold(noise)
        if incumbent(self.session.trials(), goal, noise.reference_seconds) is None:
            raise self._nothing_found(noise, goal)
        conclusion = self._conclude(noise, goal)
        policy = self._write(conclusion)
        # The policy first: what its passes bought is for the page alone.
        try:
            search.bought(
                conclusion.plan, lambda: self.request.search_seconds - self.session.elapsed
            )
        except KeyboardInterrupt:
            self.progress.say("stopped while measuring what each pass bought; the policy stands")
        result = self._result(conclusion, str(policy), noise)
        self._end(conclusion.status, noise, result)
        return result

    def reserve(self, noise: Noise) -> float:
        """Return the seconds that are kept for the certificate and what follows it."""
        batch = self.worker.case.workload.batch_size
        return reserve(self.request, noise.reference_seconds, batch)

    def _refuse_too_short(self, noise: Noise, reserve: float) -> None:
        """Refuse a search time in which not even one plan can be tried and certified."""
        batch = self.worker.case.workload.batch_size
        counts = estimate(self.request, noise.reference_seconds, batch)
        needed = counts["baseline_seconds"] + counts["trial_seconds"] + reserve
        if self.session.trials() or self.request.search_seconds >= needed:
            return
        asked = format_seconds(self.request.search_seconds)
        raise UsageError(
            f"{asked} are too short to try one plan and certify it; an untouched call takes "
            f"{noise.reference_seconds:.1f} s here",
            value=asked,
            way_out=f"give --search-time {math.ceil(1.1 * needed)}s or more with --resume",
        )

    def _left(self, search: Search, reserve: float) -> float:
        total = self.request.search_seconds
        self.progress.tick("search", self.session.elapsed, total - reserve, search.best())
        return total - reserve - self.session.elapsed

    def _say_plan(self, noise: Noise) -> None:
        reserve = self.reserve(noise)
        self.progress.say(
            f"untouched: {noise.reference_seconds:.2f} s a call (±{noise.spread:.1%}), noise "
            f"floor LPIPS {noise.lpips:.4f}; {reserve:.0f} s of {self.request.search_seconds:.0f} "
            "s are reserved for the certificate"
        )

    def _say_foretold(self, noise: Noise) -> None:
        """Say how well the trials were predicted, and how many plans that saved."""
        n = len(compared(self.session.trials(), noise.reference_seconds))
        found = self._foretold(noise)
        if n:
            rank = found["rank_correlation"]
            said = "too few to rank" if rank is None else f"rank correlation {rank:.2f}"
            self.progress.say(f"predicted against measured: {said}, {n} trials; "
                              f"{found['skipped']} plans skipped")  # fmt: skip

    def _foretold(self, noise: Noise) -> dict[str, Any]:
        """Return what a study ends with about its predictions."""
        rank = rank_correlation(self.session.trials(), noise.reference_seconds)
        return {
            "skipped": len(self.session.ledger.skipped()),
            "rank_correlation": None if rank is None else round(rank, 4),
        }

    def _conclude(self, noise: Noise, goal: Goal) -> Conclusion:
        """Certify, or take the search's word where no certificate was asked for."""
        trials = [trial for trial in self.session.trials() if trial.origin != "bought"]
        if not self.request.certify:
            found = incumbent(trials, goal, noise.reference_seconds)
            assert found is not None
            rounds = rounds_of_trial(found[0])
            plan = found[0].plan
            facts = evidence(plan, rounds, noise, goal, trials, None)
            return Conclusion(plan=plan, status="measured", goal=goal, evidence=facts)
        tests = Certification(self.session, self.worker, self.race, goal, noise, self.progress)
        verdicts, rounds = tests.run()
        passed = next((verdict for verdict in verdicts if verdict.passed), None)
        if passed is None:
            raise self._not_certified(noise, goal, [v.stopped_early or "" for v in verdicts])
        facts = evidence(
            passed.plan, rounds, noise, goal, trials,
            certificate(verdicts, tests.plans, self.request.split, tests.openings),
            level=1 - passed.alpha_each, put=tests.put,
        )  # fmt: skip
        return Conclusion(plan=passed.plan, status="certified", goal=goal, evidence=facts)

    def _write(self, conclusion: Conclusion) -> Path:
        path = policy_path(self.request, self.worker.case.device)
        artifacts = self.session.artifacts(conclusion.plan)
        policy = make_policy(conclusion, self.worker.case, self.session, artifacts)
        write(policy, path)
        return path

    def _result(self, conclusion: Conclusion, policy: str, noise: Noise) -> TuneResult:
        facts = conclusion.evidence
        trials = self.session.trials()
        elapsed = self.session.elapsed
        return TuneResult(
            status=conclusion.status, policy=policy, page=None, plan=str(conclusion.plan),
            speedup=round(1 / facts.latency.ratio.value, 3), latency=facts.latency.tuned,
            lpips=facts.lpips.mean if facts.lpips else None, baseline=facts.latency.baseline,
            memory=facts.memory_tuned, trials=len(trials),
            failed_trials=sum(t.outcome.kind == "failed" for t in trials),
            seconds=round(elapsed, 1),
            **self._shares(), **self._foretold(noise),
        )  # fmt: skip

    def _shares(self) -> dict[str, float]:
        """Return the share of steady calls in this run's time, and the overhead of a trial."""
        steady = self.worker.pipeline_seconds / max(self.session.this_run, 1e-9)
        overhead = self.worker.overhead_seconds / max(1, self.session.trials_of_this_run)
        return {
            "share_in_pipeline": round(steady, 3),
            "overhead_seconds_per_trial": round(overhead, 2),
        }

    def _end(self, status: str, noise: Noise, result: TuneResult | None = None) -> None:
        seconds = round(self.session.elapsed, 1)
        body: dict[str, Any] = {"status": status, "seconds": seconds} | self._shares()
        body |= self._foretold(noise)
        if result is not None:
            body |= result.model_dump(mode="json")
        self.session.ledger.append("end", body)

    def _nothing_found(self, noise: Noise, goal: Goal) -> NoPlanMeetsGoal:
        reference = noise.reference_seconds
        found = fastest(self.session.trials(), goal, reference)
        seen = "nothing could be measured"
        if found is not None:
            trial, score = found
            lpips = "unknown" if score.lpips is None else f"{score.lpips:.3f}"
            seen = f"the fastest seen is {trial.plan} at {score.seconds:.2f} s, LPIPS {lpips}"
        self._end("none", noise)
        return NoPlanMeetsGoal(
            f"no plan meets the goal ({_asked(goal)}) on this device; {seen}",
            way_out="raise the budget or the LPIPS cap, or give more --search-time with --resume",
        )

    def _not_certified(self, noise: Noise, goal: Goal, reasons: list[str]) -> NotCertified:
        self._end("not certified", noise)
        why = "; ".join(reason for reason in reasons if reason) or "a bound lay over its limit"
        return NotCertified(
            f"no finalist was certified for {_asked(goal)} on {len(self.request.split.certify)} "
            f"unseen prompts ({why})",
            way_out="raise a limit, or give --no-certify for a policy of status measured",
        )


def _facts(request: TuneRequest, graph: Graph) -> dict[str, Any]:
    """Return what a study records about itself besides its identity."""
    return {
        "command": request.command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "excluded": dict(graph.excluded),
        "legal": [one.name for one in graph.legal],
        "clashes": [[c.a, c.b, str(c)] for c in graph.clashes if c.verdict == "breaks"],
        "versions": dict(graph.case.device.libraries),
    }


def _asked(goal: Goal) -> str:
    said = []
    if goal.budget_seconds is not None:
        said.append(f"{goal.budget_seconds:g} s")
    if goal.vram_bytes is not None:
        said.append(f"{goal.vram_bytes / 2**30:.2f} GiB")
    if goal.max_lpips is not None:
        said.append(f"LPIPS {goal.max_lpips:g}")
    return ", ".join(said)
