"""A study's steps on a made-up machine: the noise floor, trials against the clock, what is left."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from planner.case.goal import Goal
from planner.case.outcome import Failed, Measured, Outcome
from planner.case.prompts import Prompt, Sample
from planner.errors import UsageError
from planner.plans.graph import Graph, build
from planner.plans.plan import Plan
from planner.policy.file import write_policy
from planner.run.pipeline import PipelineSource
from planner.trials.ledger import Ledger
from planner.trials.protocol import Put
from planner.trials.trial import Trial
from planner.tuning.noise import Noise, measure_noise, reference_image
from planner.tuning.policies import refuse_to_replace
from planner.tuning.race import Limits, Race
from planner.tuning.request import TuneRequest
from planner.tuning.search import Search
from planner.tuning.session import Session
from tests.cases import flux_case
from tests.page_study import GOAL, case, split
from tests.policies import a_policy

REFERENCE = 5.0
NOISE = Noise(reference_seconds=REFERENCE, spread=0.02, lpips=0.0, lpips_p95=0.0, memory_bytes=1,
              load_seconds=1.0, first_call_seconds=5.0)  # fmt: skip
WINNER = Plan.of({"steps": {"num_inference_steps": 20}, "tea_cache": {"threshold": 0.2},
                  "guidance_interval": {"stop": 0.7}})  # fmt: skip


class Machine:
    """Stands in for a worker: calls take the seconds of `script`, then the usual ones."""

    load_seconds = 1.0

    def __init__(self, images: Path, script: Sequence[float] = ()) -> None:
        self.case, self.images, self.script = case(), images, list(script)
        self.calls: list[dict[str, Any]] = []
        self.lines: list[str] = []

    def put(self, plan: Plan, artifacts: Any, call: Any, deadline: float, **how: Any) -> Put:
        self.calls.append({"deadline": deadline})
        return Put(apply_seconds=0.1, first_call_seconds=1.0)

    def render(
        self, which: str, call: Sequence[Prompt], deadline: float, save: bool = True,
        counted: bool = True,
    ) -> list[Sample]:  # fmt: skip
        self.calls.append({"deadline": deadline, "save": save, "counted": counted})
        places = [reference_image(self.images, prompt) for prompt in call]
        far = (0.001,) * len(call) if all(place.exists() for place in places) else ()
        for place in places if save and not far else ():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("an image")
        seconds = self.script.pop(0) if self.script else REFERENCE
        return [Sample(prompts=tuple(p.id for p in call), seconds=seconds, lpips=far)]

    def say(self, line: str) -> None:
        self.lines.append(line)

    def tick(self, *how: Any) -> None:
        raise AssertionError(how)


def session(folder: Path) -> Session:
    request = TuneRequest(source=PipelineSource(model="shapes"), workload=case().workload,
                          goal=GOAL, split=split(), out=folder)  # fmt: skip
    path = folder / "ledger.jsonl"
    ledger = Ledger.open(path) if path.exists() else Ledger.create(path, {"request": {}})
    return Session(ledger, request, folder)


def calls(of: Session) -> list[tuple[Prompt, ...]]:
    return [(prompt,) for prompt in of.request.split.search]


def test_the_untouched_pipeline_is_warmed_until_two_calls_agree(tmp_path: Path) -> None:
    study = session(tmp_path)
    machine: Any = Machine(study.images, (9.0, 5.5, 5.1, 5.0))
    noise = measure_noise(study, machine, calls(study))
    counted = [call["counted"] for call in machine.calls]
    assert counted == [False] * 4 + [True] * 12
    assert noise.first_call_seconds == 9.0 and noise.reference_seconds == REFERENCE
    unsteady: Any = Machine(study.images, (9.0, 4.0, 9.0, 4.0))
    measure_noise(session(tmp_path / "b"), unsteady, calls(study))
    assert [call["counted"] for call in unsteady.calls].count(False) == 4, "and no longer"


def test_reference_images_that_are_gone_are_drawn_anew_and_not_measured(tmp_path: Path) -> None:
    study = session(tmp_path)
    first: Any = Machine(study.images)
    noise = measure_noise(study, first, calls(study))
    missing = [reference_image(study.images, call[0]) for call in calls(study)[:2]]
    for place in missing:
        place.unlink()
    before = len(study.ledger)
    again: Any = Machine(study.images)
    assert measure_noise(study, again, calls(study)) == noise
    assert len(again.calls) == 2 and not any(call["counted"] for call in again.calls)
    assert all(place.exists() for place in missing) and len(study.ledger) == before
    whole: Any = Machine(study.images)
    measure_noise(study, whole, calls(study))
    assert whole.calls == []


def test_no_request_of_a_trial_may_take_longer_than_is_left(tmp_path: Path) -> None:
    machine: Any = Machine(tmp_path)
    race = Race(machine, split().search, lambda plan: {}, lambda plan, artifacts: None)
    limits = Limits(goal=GOAL, reference_seconds=REFERENCE, spread=0.02)
    race.run(WINNER, limits)
    assert machine.calls[0]["deadline"] == 300 + 10 * REFERENCE
    machine.calls.clear()
    race.run(WINNER, limits, left=20.0)
    assert all(call["deadline"] <= 20.0 for call in machine.calls) and len(machine.calls) == 3


def test_a_trial_tells_what_each_of_its_calls_reused(tmp_path: Path) -> None:
    machine: Any = Machine(tmp_path)
    counted = iter([{"tea_cache": {"hit_rate": i / 10, "reused": i}} for i in range(6)])
    render = machine.render

    def counting(which: str, *how: Any, **more: Any) -> list[Sample]:
        drawn = render(which, *how, **more)
        seen = {"statistics": next(counted)} if which == "candidate" else {}
        return [sample.model_copy(update=seen) for sample in drawn]

    machine.render = counting
    race = Race(machine, split().search, lambda plan: {}, lambda plan, artifacts: None)
    goal = Goal(max_lpips=0.1)
    outcome = race.run(WINNER, Limits(goal=goal, reference_seconds=REFERENCE, spread=0.02))
    assert isinstance(outcome, Measured)
    assert outcome.hit_rates == {"tea_cache": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)}
    assert outcome.statistics == {"tea_cache": {"hit_rate": 0.5, "reused": 5}}


class Races:
    """Stands in for a race: answers with an outcome and remembers what was asked."""

    def __init__(self, answer: Callable[[Plan], Outcome]) -> None:
        self.calls, self._answer = split().search, answer
        self.asked: list[tuple[Plan, float]] = []

    def run(self, plan: Plan, limits: Limits, calls: int | None = None, *, left: float) -> Outcome:
        self.asked.append((plan, left))
        return self._answer(plan)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return build(flux_case(), without=("compile_blocks", "int8_dynamic"))


def measured(count: int) -> Measured:
    return Measured(seconds=(1.5,) * count, ratios=(0.3,) * count, lpips=(0.05,) * count)


def search(folder: Path, graph: Graph, races: Any, machine: Any) -> Search:
    return Search(session(folder), races, graph, GOAL, NOISE, machine)


def known(of: Search, plan: Plan, outcome: Outcome) -> None:
    number = of.session.next_number
    of.session.ledger.append("start", {"number": number, "plan": str(plan)})
    trial = Trial(number=number, plan=plan, outcome=outcome, origin="sampler", seconds=9.0)
    of.session.ledger.append("trial", trial.model_dump(mode="json"))


def test_what_a_pass_bought_rests_on_enough_calls_and_is_asked_for_once(
    tmp_path: Path, graph: Graph
) -> None:
    races = Races(lambda plan: Failed(stage="crash", reason="gone"))
    found = search(tmp_path, graph, races, Machine(tmp_path))
    rests = {name: WINNER.without(name) for name in WINNER.names}
    known(found, rests["steps"], measured(1))
    known(found, rests["tea_cache"], measured(3))
    known(found, rests["guidance_interval"], Failed(stage="timeout", reason="slow"))
    found.bought(WINNER, lambda: 100.0)
    assert {plan for plan, _ in races.asked} == {rests["steps"], rests["guidance_interval"]}
    found.bought(WINNER, lambda: 100.0)
    assert len(races.asked) == 2, "one that fails again is left alone"


def test_what_the_passes_bought_is_left_out_where_no_time_is_left(
    tmp_path: Path, graph: Graph
) -> None:
    races, machine = Races(lambda plan: measured(3)), Machine(tmp_path)
    found = search(tmp_path, graph, races, machine)
    left = [30.0, 30.0, 0.0]
    found.bought(WINNER, lambda: left.pop(0))
    assert len(races.asked) == 1 and races.asked[0][1] < 30 + 60 + 10 * REFERENCE + 1
    assert machine.lines[-1].startswith("no time is left to measure what ")


def test_a_run_counts_from_its_start_and_its_own_trials_alone(tmp_path: Path, graph: Graph) -> None:
    found = search(tmp_path, graph, Races(lambda plan: measured(3)), Machine(tmp_path))
    known(found, WINNER, measured(3))
    assert found.session.trials_of_this_run == 1
    ledger = found.session.ledger
    again = Session(ledger, found.session.request, tmp_path, began=time.monotonic() - 50)
    assert again.trials_of_this_run == 0 and again.this_run >= 50 and again.elapsed >= 59


@pytest.mark.parametrize("model", [".", "../flux", "~/flux"])
def test_a_folder_is_labelled_by_its_real_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    (tmp_path / "flux").mkdir()
    monkeypatch.chdir(tmp_path / "flux")
    monkeypatch.setenv("HOME", str(tmp_path))
    source = PipelineSource(model=model)
    asked = TuneRequest(source=source, workload=case().workload, goal=GOAL, split=split())
    assert asked.label == "flux"
    assert asked.model_copy(update={"source": PipelineSource(model="..")}).label == (
        tmp_path.name.lower()
    )


def test_a_policy_of_another_model_or_call_is_not_replaced_unasked(tmp_path: Path) -> None:
    path, there = tmp_path / "2s.yaml", a_policy()
    asked = session(tmp_path).request.model_copy(update={"workload": there.case.workload})
    refuse_to_replace(path, asked)
    write_policy(there, path)
    refuse_to_replace(path, asked)
    other = asked.model_copy(update={"source": PipelineSource(model="b/shapes")})
    batched = there.case.workload.model_copy(update={"batch_size": 4})
    for wanted, said in ((other, "model is b/shapes now and was shapes"),
                         (asked.model_copy(update={"workload": batched}), "batch is 4 now")):
        with pytest.raises(UsageError, match=said) as caught:
            refuse_to_replace(path, wanted)
        assert caught.value.value == str(path) and "--fresh" in caught.value.way_out
    path.write_text(json.dumps({"no": "policy"}))
    refuse_to_replace(path, other)
