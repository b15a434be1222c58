"""The certificate: bounds, early stops, and a run that may be stopped between any two rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from planner.case.goal import Goal
from planner.case.outcome import Measured
from planner.case.prompts import Prompt, Sample
from planner.errors import TrialFailed
from planner.plans.plan import Plan
from planner.run.pipeline import PipelineSource
from planner.trials.ledger import Ledger
from planner.trials.protocol import Put
from planner.trials.trial import Trial
from planner.tuning.certificate import Certification
from planner.tuning.certify import ALPHA, Rounds, alpha_each, bounds, certify, hopeless
from planner.tuning.noise import Noise
from planner.tuning.request import TuneRequest
from planner.tuning.session import Session
from tests.page_study import case, split

GOAL = Goal(budget_seconds=2.0, max_lpips=0.1)
REFERENCE = 5.0


def sample(seconds: float, lpips: float | None = None) -> Sample:
    return Sample(prompts=("p",), seconds=seconds, lpips=() if lpips is None else (lpips,))


def rounds(ratio: float, lpips: list[float]) -> Rounds:
    return Rounds(candidate=tuple(sample(5 * ratio, v) for v in lpips),
                  baseline=tuple(sample(5.0) for _ in lpips))  # fmt: skip


def test_alpha_is_divided_by_openings_finalists_and_limits() -> None:
    assert alpha_each(3, GOAL, 1) == pytest.approx(ALPHA / 6)
    assert alpha_each(3, GOAL, 2) == pytest.approx(ALPHA / 12)


def test_a_mean_just_below_the_cap_is_not_enough_to_certify() -> None:
    values = [0.08 + 0.03 * ((i % 5) - 2) for i in range(32)]
    tight = bounds(rounds(0.3, [v + 0.015 for v in values]), GOAL, REFERENCE, 0.008)["lpips"]
    assert tight.value < GOAL.max_lpips < tight.upper  # type: ignore[operator]
    assert not tight.holds
    assert bounds(rounds(0.3, [v / 2 for v in values]), GOAL, REFERENCE, 0.008)["lpips"].holds


def test_latency_needs_ten_rounds_at_least() -> None:
    few = bounds(rounds(0.3, [0.01] * 4), GOAL, REFERENCE, 0.008)["latency"]
    assert not few.holds
    assert bounds(rounds(0.3, [0.01] * 10), GOAL, REFERENCE, 0.008)["latency"].holds


def test_a_hopeless_finalist_is_stopped_after_ten_rounds() -> None:
    assert hopeless(rounds(0.3, [0.5] * 9), GOAL, REFERENCE) is None
    assert "over the cap" in str(hopeless(rounds(0.3, [0.5] * 10), GOAL, REFERENCE))
    assert "over budget" in str(hopeless(rounds(0.9, [0.01] * 10), GOAL, REFERENCE))


def test_a_finalist_is_certified_only_when_all_bounds_hold() -> None:
    calls = [()] * 32
    plan = Plan.of({"steps": {"num_inference_steps": 20}})
    good, played = certify(plan, calls, GOAL, REFERENCE, 0.008,
                           lambda *_: (sample(1.5, 0.03), sample(5.0)))  # fmt: skip
    assert good.passed
    assert len(played.ratios) == 32
    bad, played = certify(plan, calls, GOAL, REFERENCE, 0.008,
                          lambda *_: (sample(2.5, 0.03), sample(5.0)))  # fmt: skip
    assert not bad.passed
    assert bad.stopped_early is not None
    assert len(played.candidate) == 10


def plan(steps: int) -> Plan:
    return Plan.of({"steps": {"num_inference_steps": steps}})


PLANS = (plan(20), plan(21))
NOISE = Noise(reference_seconds=REFERENCE, spread=0.02, lpips=0.0, lpips_p95=0.0, memory_bytes=1,
              load_seconds=1.0, first_call_seconds=5.0)  # fmt: skip


class Machine:
    """Stands in for worker, race and progress; a plan in `broken` cannot be put on."""

    def __init__(self, broken: Sequence[Plan] = (), stop: Callable[[float], None] = abs) -> None:
        self.case, self.broken, self._stop = case(), broken, stop
        self.asked: list[Plan] = []
        self.lines: list[str] = []

    def put(self, of: Plan, reference: float, **how: Any) -> Put:
        self.asked.append(of)
        if of in self.broken:
            raise TrialFailed("it broke", stage="apply", way_out="mend it")
        return Put(apply_seconds=0.1, first_call_seconds=len(self.asked))

    def render(self, which: str, call: Sequence[Prompt], *rest: Any, **how: Any) -> list[Sample]:
        far = (0.03,) * len(call) if which == "candidate" else ()
        return [Sample(prompts=tuple(p.id for p in call), lpips=far,
                       seconds=1.5 if which == "candidate" else REFERENCE)]  # fmt: skip

    def say(self, line: str) -> None:
        self.lines.append(line)

    def tick(self, phase: str, done: float, of: float, incumbent: str) -> None:
        assert of == 32
        self._stop(done)


def certification(folder: Path, machine: Any, **asked: Any) -> Certification:
    """Return the certificate of the study in a folder, begun or gone on with."""
    path = folder / "ledger.jsonl"
    begun = path.exists()
    ledger = Ledger.open(path) if begun else Ledger.create(path, {"request": {}})
    if not begun:
        for number, of in enumerate(PLANS):
            outcome = Measured(seconds=(1.5,), ratios=(0.3 + number / 100,), lpips=(0.03,) * 6)
            ledger.append("trial", Trial(
                number=number, plan=of, outcome=outcome, origin="sampler", seconds=1.0,
            ).model_dump(mode="json"))  # fmt: skip
    request = TuneRequest(source=PipelineSource(model="shapes"), workload=case().workload,
                          goal=GOAL, split=split(), out=folder, **asked)  # fmt: skip
    session = Session(ledger, request, folder)
    return Certification(session, machine, machine, GOAL, NOISE, machine)


def stopping(at: int) -> Callable[[float], None]:
    def stop(done: float) -> None:
        if done == at:
            raise KeyboardInterrupt

    return stop


def test_an_interrupt_between_rounds_leaves_only_whole_ones(tmp_path: Path) -> None:
    first = certification(tmp_path, Machine(stop=stopping(3)))
    with pytest.raises(KeyboardInterrupt):
        first.run()
    first.session.ledger.close()
    roles = [sample.role.partition(":")[0] for sample in first.session.ledger.samples()]
    assert roles == ["certify-baseline", "certify"] * 3
    again = certification(tmp_path, Machine())
    verdicts, rounds = again.run()
    assert verdicts[0].passed and len(rounds.ratios) == 32
    assert len(again.session.ledger.samples()) == 64, "nothing is measured twice"


def test_a_finalist_is_tested_once_however_often_the_study_is_resumed(tmp_path: Path) -> None:
    first = certification(tmp_path, Machine(broken=PLANS[:1], stop=stopping(2)))
    with pytest.raises(KeyboardInterrupt):
        first.run()
    first.session.ledger.close()
    machine = Machine()
    again = certification(tmp_path, machine)
    verdicts, rounds = again.run()
    assert [v.passed for v in verdicts] == [False, True] and len(rounds.ratios) == 32
    assert machine.asked == [PLANS[1]], "the one that broke is not tried again"
    assert again.put is not None
    again.session.ledger.close()
    last = certification(tmp_path, Machine(broken=PLANS))
    assert last.run() == (verdicts, rounds)
    assert last.put is None, "nothing was put on, and no other plan's start-up is stated"
    assert len(last.session.ledger.bodies("verdict")) == 2


def test_a_finalist_that_is_tested_after_the_search_time_says_so(tmp_path: Path) -> None:
    machine = Machine()
    certification(tmp_path, machine, search_seconds=0.001).run()
    assert "after the search time ended" in machine.lines[0]
    machine = Machine()
    certification(tmp_path / "b", machine).run()
    assert machine.lines == [f"certifying {PLANS[0]} on 32 unseen prompts"]
