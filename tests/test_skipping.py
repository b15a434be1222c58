"""What a search does with predictions: order, skip, write down first, and show on the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.case.outcome import Failed, Measured, Outcome
from planner.passes import registry
from planner.plans.graph import Graph, build
from planner.plans.plan import Plan
from planner.reporting.findings import read_findings
from planner.reporting.page import render
from planner.trials.ledger import Ledger
from planner.trials.trial import Skipped, Trial
from planner.tuning.experts import expert_plans
from planner.tuning.foresight import Foresight, Prediction, compared, rank_correlation
from planner.tuning.search import Search
from planner.tuning.space import space
from planner.tuning.study import skipped
from tests.cases import flux_case
from tests.foretelling import STEPS, foresight, measured, taught, trial, work
from tests.page_study import GOAL, Fake, plan
from tests.test_search import NOISE, REFERENCE, Machine, Races, session


@pytest.fixture(scope="module")
def graph() -> Graph:
    return build(flux_case(), without=("compile_blocks", "int8_dynamic"))


def search(folder: Path, graph: Graph, races: Any, machine: Any, of: Foresight | None) -> Search:
    return Search(session(folder), races, graph, GOAL, NOISE, machine, of)


def share_of(of: Plan) -> float:
    """Answer the share of forwards that a made-up cache computes, a mask what it says."""
    steps = of.settings("steps")["num_inference_steps"] if "steps" in of else STEPS
    for one in of.passes:
        if one.name in ("step_mask", "taylor_seer"):
            shorter = work().mapped(lambda phase: phase.model_copy(
                update={"calls": steps if phase.name == "denoise" else phase.calls}
            ))  # fmt: skip
            after = registry.get(one.name).effect(shorter, one.parsed(), None)
            return after.computed_forwards / shorter.computed_forwards
    cache = next((one.parsed() for one in of.passes if "threshold" in one.settings), None)
    start, threshold = getattr(cache, "start", 0.0), getattr(cache, "threshold", 0.0)
    return start + (1 - start) / (1 + 5 * threshold * steps / STEPS)


def ratio_of(of: Plan) -> float:
    """Answer as the made-up machine does: forwards that are computed, and a rest."""
    steps = of.settings("steps")["num_inference_steps"] if "steps" in of else STEPS
    interval = next((one.parsed() for one in of.passes if one.name == "guidance_interval"), None)
    guided = getattr(interval, "stop", 1.0) - getattr(interval, "start", 0.0)
    return 0.05 + 0.95 * steps / STEPS * share_of(of) * (1 + guided) / 2


def answer(of: Plan) -> Measured:
    computed = 100 * share_of(of)
    counts = {"computed": computed, "reused": 100 - computed}
    return measured(ratio_of(of), {name: counts for name in of.names if name.endswith("_cache")})


def test_seeds_that_should_meet_the_budget_come_first_and_the_nearest_of_the_others_next(
    tmp_path: Path, graph: Graph
) -> None:
    request = session(tmp_path).request.model_copy(update={"search_seconds": 9000.0})
    variables = space(graph, graph.case)
    plain = expert_plans(request, graph, GOAL, variables, REFERENCE)
    of = foresight()
    ordered = expert_plans(request, graph, GOAL, variables, REFERENCE, of)
    beyond = [of.beyond(one, GOAL.budget_seconds) for one in ordered]
    assert beyond == sorted(beyond) and beyond[0] == 0 < beyond[-1]
    kept = [one for one in plain if of.beyond(one, GOAL.budget_seconds) == 0]
    assert ordered[: len(kept)] == kept and set(ordered) == set(plain)


def test_a_plan_that_cannot_meet_the_budget_is_skipped_and_told(
    tmp_path: Path, graph: Graph
) -> None:
    races, machine = Races(answer), Machine(tmp_path)
    found = search(tmp_path, graph, races, machine, taught(8))
    slow = [plan(48), plan(47)]
    found._plans.clear()
    found._plans.extend([*slow, plan(12)])
    chosen, origin = found._next()
    assert (chosen, origin) == (plan(12), "seed")
    ledger = found.session.ledger
    assert [one.plan for one in ledger.skipped()] == slow
    assert all("skipped: at best" in line for line in machine.lines[-2:])
    told = [t for t in found.study._study.trials if t.user_attrs["plan"] in map(str, slow)]
    assert len(told) == 2 and all(t.user_attrs["imputed"] for t in told)
    assert all(t.constraints["latency"] > 0 > t.constraints["failed"] for t in told)
    assert races.asked == [] and found.session.trials() == []


def test_a_resumed_study_replays_what_was_skipped(tmp_path: Path, graph: Graph) -> None:
    first = search(tmp_path, graph, Races(answer), Machine(tmp_path), taught(8))
    first._plans.extendleft([plan(48)])
    first._next()
    count = len(first.session.ledger.skipped())
    assert count
    first.session.ledger.close()
    again = search(tmp_path, graph, Races(answer), Machine(tmp_path), foresight())
    assert again.study._known(plan(48)) is not None
    again._plans.extendleft([plan(48)])
    assert again._next()[0] != plan(48)
    assert len(again.session.ledger.skipped()) == count, "nothing is skipped twice"


def test_one_is_measured_where_the_sampler_has_nothing_else(
    tmp_path: Path, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = search(tmp_path, graph, Races(answer), Machine(tmp_path), taught(8))
    found._plans.clear()
    proposed = iter(range(49, 40, -1))
    monkeypatch.setattr(found.study, "ask", lambda: plan(next(proposed)))
    assert found._next() == (plan(44), "sampler")
    assert len(found.session.ledger.skipped()) == 5


def test_a_prediction_stands_in_the_ledger_before_its_trial_has_run(
    tmp_path: Path, graph: Graph
) -> None:
    of, machine = foresight(), Machine(tmp_path)
    seen: list[dict[str, Any]] = []

    def look(asked: Plan) -> Outcome:
        seen.append(Ledger.read(tmp_path / "ledger.jsonl").bodies("start")[-1])
        return measured(0.3) if len(seen) == 1 else Failed(stage="crash", reason="gone")

    found = search(tmp_path, graph, Races(look), machine, of)
    done = found.attempt(plan(25), "seed", 100.0)
    assert done.predicted == seen[0]["predicted"] and set(done.predicted) == {
        "seconds", "low", "high"
    }  # fmt: skip
    assert "predicted 2.62 s (" in machine.lines[-1] and "measured 1.50 s" in machine.lines[-1]
    found.attempt(plan(24), "seed", 100.0)
    assert machine.lines[-1].endswith("failed at crash: gone")
    assert found.session.trials()[-1].predicted["seconds"] < done.predicted["seconds"]


def test_a_whole_search_is_predicted_in_order_of_what_is_measured(
    tmp_path: Path, graph: Graph
) -> None:
    def noisy(of: Plan) -> Measured:
        one = answer(of)
        off = 1 + 0.04 * (int(of.digest()[:4], 16) / 32768 - 1)
        return one.model_copy(update={"ratios": tuple(off * r for r in one.ratios)})

    machine: Any = Machine(tmp_path)
    study = session(tmp_path)
    study.request = study.request.model_copy(update={"trials": 16, "sampler": "tpe"})
    races: Any = Races(noisy)
    found = Search(study, races, graph, GOAL, NOISE, machine, foresight())
    machine.tick = lambda *how: None
    assert found.run(lambda: 1e6) == "16 trials, as asked"
    trials = found.session.trials()
    rank = rank_correlation(trials, REFERENCE)
    assert len(compared(trials, REFERENCE)) == 16 and rank is not None and rank >= 0.9
    assert all(ratio_of(one.plan) * REFERENCE > 1.9 for one in found.session.ledger.skipped())


def test_what_the_sampler_is_told_of_a_skipped_plan_is_imputed() -> None:
    told = skipped(4.0, GOAL, REFERENCE, ())
    assert told.imputed and told.constraints["latency"] == pytest.approx(4.0 / 1.9 - 1)
    assert told.constraints["failed"] < 0


def test_ledgers_without_predictions_are_read_and_have_a_page(tmp_path: Path) -> None:
    fake = Fake(tmp_path)
    fake.search()
    found = read_findings(tmp_path, None)
    assert all(one.predicted == {} for one in found.trials) and found.skipped == ()
    html = render(found, tmp_path / "images")
    assert 'id="foretold"' not in html and "Predicted against measured" not in html
    old = json.loads(found.trials[0].model_dump_json())
    del old["predicted"]
    assert Trial.model_validate(old) == found.trials[0]


def test_the_page_shows_the_rank_correlation_and_what_was_skipped(tmp_path: Path) -> None:
    fake = Fake(tmp_path)
    fake.baseline()
    for index, (steps, ratio) in enumerate(((25, 0.5), (20, 0.42), (16, 0.3), (12, 0.25))):
        expected = Prediction(seconds=5.2 * ratio * 1.1, low=1.0, high=3.0)
        fake.ledger.append("start", {"number": index, "plan": str(plan(steps))})
        one = trial(plan(steps), measured(ratio), expected, index)
        fake.ledger.append("trial", one.model_dump(mode="json"))
    slow = Skipped(plan=plan(48), origin="sampler",
                   predicted={"seconds": 5.0, "low": 4.1, "high": 6.0})  # fmt: skip
    fake.ledger.append("skipped", slow.model_dump(mode="json"))
    html = render(read_findings(tmp_path, None), tmp_path / "images")
    assert "Rank correlation: 1.00 (Spearman&#39;s), 4 trials" in html
    assert "steps(48)" in html and "at best 4.10 s, expected 5 s" in html
    assert html.count('data-name="predicted"') == 4
