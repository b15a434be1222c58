"""What a study foretells: fixed before it is measured, learned from, and used to skip plans."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from planner.case.case import Case
from planner.case.device import Device
from planner.case.outcome import Failed, Measured, Outcome
from planner.case.work import Operation, Phase, Work
from planner.catalog.devices import card_of
from planner.measure import calibration
from planner.plans.graph import Graph, build
from planner.plans.plan import Plan
from planner.prediction.roofline import Speeds
from planner.reporting.findings import read_findings
from planner.reporting.page import render
from planner.run.devices.base import backend
from planner.run.pipeline import PipelineSource
from planner.trials.ledger import Ledger
from planner.trials.trial import Skipped, Trial
from planner.tuning.experts import expert_plans
from planner.tuning.footing import Footing, footing
from planner.tuning.foresight import Foresight, Prediction, compared, rank_correlation
from planner.tuning.search import Search
from planner.tuning.space import space
from planner.tuning.study import skipped
from tests.cases import flux_case
from tests.page_study import GOAL, Fake, plan
from tests.page_study import case as study_case
from tests.test_search import NOISE, REFERENCE, Machine, Races, session

SPEEDS = Speeds(products={"float32": 1e9, "tf32": 1e9}, convolution=1.0, attention={"": 1.0},
                bandwidth=1e9, cached=1.0, cache=1.0, launch=0.0, ramp=0.0, call=0.0, step=0.0,
                link=1e9)  # fmt: skip
STEPS = 50


def work() -> Work:
    """Return what a call with two branches computes: all but a twentieth of it in the denoiser."""

    def phase(name: Any, calls: float, flops: float, branch: str | None = None) -> Phase:
        product = Operation(path="x", kind="linear", flops=flops, bytes=1.0, dtype="float32",
                            block=name == "denoise")  # fmt: skip
        return Phase(name=name, branch=branch, calls=calls, operations=(product,))

    return Work(phases=(
        phase("encode", 1, 5e6), phase("denoise", STEPS, 2e6, "cond"),
        phase("denoise", STEPS, 2e6, "uncond"), phase("decode", 1, 5e6),
    ))  # fmt: skip


def foresight(spread: float = 1.4) -> Foresight:
    return Foresight(Footing(work(), SPEEDS, SPEEDS, spread), REFERENCE)


def measured(ratio: float, counts: dict[str, dict[str, Any]] | None = None) -> Measured:
    return Measured(seconds=(ratio * REFERENCE,) * 3, ratios=(ratio,) * 3, lpips=(0.05,) * 3,
                    statistics=counts or {})  # fmt: skip


def trial(of: Plan, outcome: Outcome, expected: Prediction | None = None, number: int = 0) -> Trial:
    return Trial(number=number, plan=of, outcome=outcome, origin="seed", seconds=1.0,
                 predicted=expected.figures if expected else {})  # fmt: skip


def taught(count: int, factor: float = 1.0) -> Foresight:
    """Return a predictor that has seen trials of fewer steps, each `factor` as long as foretold."""
    found = foresight()
    for steps in range(20, 20 + count):
        of, expected = plan(steps), found.predict(plan(steps))
        assert expected is not None
        ratio = factor * foresight_ratio(steps)
        found.learn(trial(of, measured(ratio), expected))
    return found


def foresight_ratio(steps: int) -> float:
    return (10 + 4 * steps) / (10 + 4 * STEPS)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return build(flux_case(), without=("compile_blocks", "int8_dynamic"))


def search(folder: Path, graph: Graph, races: Any, machine: Any, of: Foresight | None) -> Search:
    return Search(session(folder), races, graph, GOAL, NOISE, machine, of)


def share_of(of: Plan) -> float:
    """Answer the share of forwards that a made-up cache computes."""
    steps = of.settings("steps")["num_inference_steps"] if "steps" in of else STEPS
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


def test_only_the_ratio_to_the_untouched_call_is_predicted() -> None:
    found = foresight().predict(plan(25))
    assert found is not None
    assert found.seconds == pytest.approx(REFERENCE * foresight_ratio(25), rel=1e-6)
    assert found.low < found.seconds < found.high and found.rests_on == 0


def test_the_interval_is_wide_at_first_and_narrows_with_predictions_that_held() -> None:
    def width(of: Foresight) -> float:
        found = of.predict(plan(30))
        assert found is not None
        return found.high / found.low

    assert width(foresight()) > width(taught(3)) > width(taught(8))
    assert width(taught(8, factor=1.5)) > width(taught(8)), "who was wrong is less sure"
    unseen = taught(8).predict(plan(30, guidance=0.7))
    assert unseen is not None and unseen.high / unseen.low > width(taught(8))


def test_a_pass_that_misses_the_roofline_is_corrected_by_what_was_measured() -> None:
    found = taught(5, factor=1.3).predict(plan(30))
    assert found is not None
    assert found.seconds == pytest.approx(1.3 * REFERENCE * foresight_ratio(30), rel=0.03)


def test_what_a_cache_skips_is_learned_over_its_threshold_and_counted_by_steps() -> None:
    found = foresight()
    before = found.predict(plan(tea=0.2))
    assert before is not None and before.high / before.low > 4, "published caches differ widely"
    for threshold, computed in ((0.1, 70), (0.4, 30)):
        counts = {"tea_cache": {"computed": computed, "reused": 100 - computed}}
        found.learn(trial(plan(tea=threshold), measured(0.05 + 0.95 * computed / 100, counts)))
    seconds = {t: found.predict(plan(tea=t)) for t in (0.05, 0.1, 0.2, 0.4, 0.8)}
    ordered = [one.seconds for one in seconds.values() if one]
    assert ordered == sorted(ordered, reverse=True) and len(set(ordered)) == 5
    half, whole = found.predict(plan(25, tea=0.4)), found.predict(plan(tea=0.2))
    assert half is not None and whole is not None
    rest = 0.05 * REFERENCE
    assert (half.seconds - rest) == pytest.approx((whole.seconds - rest) / 2, rel=0.1)


def test_nothing_is_ruled_out_on_fewer_than_three_trials_or_before_its_cache_has_run() -> None:
    slow = plan(45)
    for count, ruled_out in ((0, False), (2, False), (3, True)):
        found = taught(count).predict(slow)
        assert found is not None and found.impossible(1.0) is ruled_out
    unknown = taught(8).predict(plan(45, tea=0.02))
    assert unknown is not None and unknown.rests_on == 0 and not unknown.impossible(0.01)
    assert not Prediction(seconds=9, low=8, high=10, rests_on=9).impossible(None)


def test_a_device_without_the_unit_predicts_nothing_of_that_plan() -> None:
    assert foresight().predict(Plan.of({"fp8_dynamic": {}})) is None
    assert foresight().meets(Plan.of({"fp8_dynamic": {}}), 0.1), "it may be fast enough"


def test_seeds_that_should_meet_the_budget_come_first_and_else_keep_their_order(
    tmp_path: Path, graph: Graph
) -> None:
    request = session(tmp_path).request.model_copy(update={"search_seconds": 9000.0})
    variables = space(graph, graph.case)
    plain = expert_plans(request, graph, GOAL, variables, REFERENCE)
    of = foresight()
    ordered = expert_plans(request, graph, GOAL, variables, REFERENCE, of)
    meets = [of.meets(one, GOAL.budget_seconds) for one in ordered]
    assert meets == sorted(meets, reverse=True) and 0 < sum(meets) < len(meets)
    kept = [one for one in plain if of.meets(one, GOAL.budget_seconds)]
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


def test_ranks_ask_for_three_trials_that_were_foretold_and_measured() -> None:
    def of(values: Sequence[tuple[float, float]]) -> list[Trial]:
        return [
            trial(plan(20 + i), measured(ratio), Prediction(seconds=s, low=s / 2, high=s * 2), i)
            for i, (s, ratio) in enumerate(values)
        ]

    assert rank_correlation(of([(1, 0.1), (2, 0.2)]), REFERENCE) is None
    assert rank_correlation(of([(1, 0.1), (2, 0.2), (3, 0.3)]), REFERENCE) == pytest.approx(1.0)
    assert rank_correlation(of([(1, 0.3), (2, 0.2), (3, 0.1)]), REFERENCE) == pytest.approx(-1.0)
    failed = trial(plan(12), Failed(stage="crash", reason="gone"),
                   Prediction(seconds=1, low=1, high=1))  # fmt: skip
    assert compared([failed, trial(plan(13), measured(0.2))], REFERENCE) == []


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


def test_a_model_that_cannot_be_counted_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_SECONDS", 0.01)
    monkeypatch.setattr(calibration, "_SIDES", {"cpu": 128, "cuda": 512})
    machine = Machine(tmp_path)
    source = PipelineSource(model="tests.tiny:tiny_flux", device="cpu")
    assert footing(source, study_case(), tmp_path, machine) is None
    assert len(machine.lines) == 1
    assert machine.lines[0].startswith("no predictions: no model is called 'tests.tiny:tiny_flux'")


def test_a_cpu_is_calibrated_once_and_the_embedded_model_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_SECONDS", 0.01)
    monkeypatch.setattr(calibration, "_SIDES", {"cpu": 128, "cuda": 512})
    machine, case = Machine(tmp_path), whole_case()
    found = footing(PipelineSource(model="shapes", device="cpu"), case, tmp_path, machine)
    assert found is not None and found.work.forwards == 2 * STEPS
    assert "measured in" in machine.lines[-1]
    assert calibration.stored(backend("cpu").describe(), tmp_path) is not None
    again = footing(PipelineSource(model="shapes", device="cpu"), case, tmp_path, machine)
    assert again is not None and again.eager == found.eager
    assert "measured in" not in machine.lines[-1]
    one = Foresight(found, REFERENCE).predict(plan(25))
    assert one is not None and 0.4 * REFERENCE < one.seconds < 0.6 * REFERENCE


def whole_case() -> Case:
    from planner.catalog.reader import workload_for

    workload = workload_for("shapes")
    assert workload is not None
    return study_case().model_copy(update={"workload": workload})


@pytest.mark.parametrize(
    ("name", "capability", "gigabytes", "card"),
    [
        ("NVIDIA H100 80GB HBM3", (9, 0), 79.6, "h100-sxm"),
        ("NVIDIA H100 PCIe", (9, 0), 79.6, "h100-pcie"),
        ("NVIDIA H200", (9, 0), 140.4, "h200"),
        ("NVIDIA A100-SXM4-40GB", (8, 0), 39.6, "a100-sxm-40gb"),
        ("NVIDIA A100 80GB PCIe", (8, 0), 79.3, "a100-pcie-80gb"),
        ("NVIDIA L40S", (8, 9), 44.5, "l40s"),
        ("NVIDIA GeForce RTX 4090", (8, 9), 23.6, "rtx-4090"),
        ("Tesla T4", (7, 5), 14.6, "t4"),
        ("NVIDIA GeForce GTX 1080", (6, 1), 8.0, None),
    ],
)
def test_a_card_is_found_by_the_name_that_its_driver_gives(
    name: str, capability: tuple[int, int], gigabytes: float, card: str | None
) -> None:
    device = Device(kind="cuda", name=name, capability=capability,
                    memory_bytes=int(gigabytes * 2**30))  # fmt: skip
    found = card_of(device)
    assert (found.id if found else None) == card
