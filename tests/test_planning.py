"""`planner.plan` and `planner plan --emit`: what is predicted, as a policy that says so."""

from pathlib import Path

import pytest

import planner
from planner.cli.main import run
from planner.errors import NoPlanMeetsGoal, UsageError
from planner.passes import registry
from planner.policy.file import read_policy
from planner.policy.runtime import load

Shown = pytest.CaptureFixture[str]
ASKED = ("plan", "sd1.5", "--target", "rtx-4090", "--budget", "1s")


def test_what_is_emitted_is_the_last_rung_with_all_that_it_rests_on(tmp_path: Path) -> None:
    file = tmp_path / "1s.yaml"
    assert run([*ASKED, "--emit", str(file)]) == 0
    found, planned = read_policy(file), planner.plan("sd1.5", target="rtx-4090", budget="1s")
    last, prediction = planned.ladder.last, found.prediction
    assert found.status == "predicted" and found.evidence is None and prediction is not None
    assert str(found.as_plan()) == last.plan
    assert prediction.tuned.value == pytest.approx(last.seconds, rel=1e-3)
    assert prediction.tuned.low < prediction.tuned.value < prediction.tuned.high
    assert [one.rung for one in prediction.ladder] == [one.name for one in planned.ladder.rungs]
    assert found.case.device.name == planned.card.name and found.goal.budget_seconds == 1
    assert {part.weights for part in found.case.model.components.values()} == {None}
    assert "nothing was measured" in found.summary


def test_load_refuses_it_unless_it_is_asked_for_by_name(tmp_path: Path) -> None:
    file = tmp_path / "1s.yaml"
    assert run([*ASKED, "--emit", str(file)]) == 0
    with pytest.raises(UsageError, match="is a predicted policy"):
        load(file)
    assert load(file, allow=("predicted",)).status == "predicted"


def test_where_no_rung_meets_the_goal_nothing_is_written(tmp_path: Path, capsys: Shown) -> None:
    file = tmp_path / "1ms.yaml"
    asked = ("plan", "sdxl", "--target", "t4", "--budget", "1ms", "--emit", str(file))
    assert run([*asked]) == 3 and not file.exists()
    said = capsys.readouterr().err
    assert "no plan is predicted to meet the goal (at most 1ms a call" in said
    assert "one step of the last rung takes" in said and "raise the budget" in said


def test_what_does_not_fit_says_by_how_much() -> None:
    planned = planner.plan("flux.2-dev", target="rtx-3090", vram="1GiB")
    assert not planned.ladder.meets and planned.ladder.last.lacks > 0
    with pytest.raises(NoPlanMeetsGoal, match=r"lacks .*GiB"):
        planned.policy()


def test_an_encoder_larger_than_the_card_is_streamed_beside_the_fastest_format_that_fits() -> None:
    planned = planner.plan("flux.2-dev", target="rtx-5090", vram="32GB")
    rung = planned.ladder.last
    assert planned.ladder.meets and rung.passes["text_encoder_offload"] == {"level": "leaf"}
    assert "group_offload" not in rung.passes and rung.memory <= 32e9


def test_a_cache_that_could_not_be_applied_without_a_search_is_not_recommended() -> None:
    planned = planner.plan("flux.2-dev", target="b200", budget="4s")
    quantized, cached = planned.ladder.rungs[1:3]
    assert all(registry.get(name).calibrate is None for name in cached.passes)
    # Its steps are known before the run, so that the time is the roofline's own.
    assert cached.passes["taylor_seer"]["interval"] == 3 and "published of other" not in (
        cached.rests_on
    )
    assert cached.high / cached.seconds == pytest.approx(quantized.high / quantized.seconds)


def test_a_thousand_calls_cost_what_the_hour_costs() -> None:
    planned = planner.plan("sd1.5", target="rtx-4090", budget="60s", price=3.6)
    rung = planned.ladder.last
    assert planned.usd_per_1000(rung) == pytest.approx(rung.seconds)
    unpriced = planned.model_copy(update={"price": None})
    assert unpriced.usd_per_1000(rung) is None
