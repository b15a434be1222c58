"""Page and document of a run, however it ended: what its ledger holds is shown."""

import json
from pathlib import Path
from typing import Any

import pytest

from planner.case.evidence import Quantity
from planner.cli.main import run as main
from planner.errors import Interrupted, NoPlanMeetsGoal, NotCertified, PlannerError
from planner.policy.file import write_policy
from planner.reporting import tuned
from planner.reporting.unreached import unreached
from planner.run.devices.base import backend
from planner.tuning.request import TuneRequest, TuneResult
from planner.tuning.session import study_folder
from tests.page_study import REFERENCE, Fake, plan
from tests.policies import a_policy
from tests.test_conclude import Lines, a_request


def study(request: TuneRequest) -> Fake:
    return Fake(study_folder(request, backend("cpu").describe()))


def ending(monkeypatch: pytest.MonkeyPatch, error: BaseException, act: Any = None) -> None:
    """Let every run do something and end with an error."""

    def run(*_: Any, **__: Any) -> TuneResult:
        if act is not None:
            act()
        raise error

    monkeypatch.setattr(tuned, "run", run)


def pages(folder: Path) -> list[Path]:
    return list(folder.glob("reports/**/*.html"))


def result(fake: Fake, out: Path) -> TuneResult:
    fake.search()
    path = out / "policies" / "2s.yaml"
    write_policy(a_policy(), path)
    one = Quantity(value=1.0, unit="s")
    return TuneResult(
        status="certified", policy=str(path), page=None, plan="", speedup=3.0, latency=one,
        lpips=None, baseline=one, memory=one, trials=9, failed_trials=0, seconds=9.0,
        share_in_pipeline=0.9, overhead_seconds_per_trial=1.0,
    )  # fmt: skip


def test_a_resumed_run_that_ends_without_a_policy_writes_the_page_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = a_request(out=tmp_path)
    fake = study(request)
    fake.search()
    ending(monkeypatch, NotCertified("none held", way_out="wait"), lambda: fake.end("not"))
    with pytest.raises(NotCertified):
        tuned.tune_and_report(request, Lines(), resume=True)
    assert len(pages(tmp_path)) == 1, "no trial was added, and yet the study has ended"


def test_a_run_that_measured_nothing_new_leaves_the_page_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = a_request(out=tmp_path)
    study(request).search()
    ending(monkeypatch, PlannerError("no", way_out="wait"))
    with pytest.raises(PlannerError):
        tuned.tune_and_report(request, Lines(), resume=True)
    assert pages(tmp_path) == []


def test_the_result_names_the_page_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = a_request(out=tmp_path)
    found = result(study(request), tmp_path)
    monkeypatch.setattr(tuned, "run", lambda *_, **__: found)
    assert tuned.tune_and_report(request, Lines()).page == str(pages(tmp_path)[0])


def test_a_fault_in_the_page_costs_neither_result_nor_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a scale of nothing")

    request, lines = a_request(out=tmp_path), Lines()
    fake = study(request)
    found = result(fake, tmp_path)
    monkeypatch.setattr(tuned, "write_page", broken)
    monkeypatch.setattr(tuned, "run", lambda *_, **__: found)
    assert tuned.tune_and_report(request, lines) == found, "page and all: there is none"
    ending(monkeypatch, NoPlanMeetsGoal("none", way_out="wait"), lambda: fake.end("none"))
    with pytest.raises(NoPlanMeetsGoal):
        tuned.tune_and_report(request, lines)
    assert lines.said == ["no page: unexpected ZeroDivisionError (a scale of nothing)"] * 2


def test_a_search_file_names_the_model_of_planner_tune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[TuneRequest] = []
    monkeypatch.setattr(tuned, "tune_and_report", lambda request, *_, **__: asked.append(request))
    search = tmp_path / "tiny.yaml"
    (tmp_path / "prompts.txt").write_text("\n".join(f"prompt {i}" for i in range(50)))
    search.write_text(
        f"model: tests.tiny:tiny_flux\nprompts: {tmp_path / 'prompts.txt'}\nbudget: 2s\n"
        "workload: {steps: 10}\n"
    )
    tuned.tune(search=str(search))
    tuned.tune(budget="2s")
    assert [request.source.model for request in asked] == ["tests.tiny:tiny_flux", "shapes"]


def test_an_uncertified_study_prints_its_first_finalist_on_unseen_prompts(tmp_path: Path) -> None:
    request = a_request(out=tmp_path)
    fake = study(request)
    fake.search()
    verdict, _ = fake.certify(worse=1.7)
    fake.end("not certified")
    found = unreached(request, NotCertified("a bound was over", way_out="raise a limit"))
    assert found.keys() == {*TuneResult.model_fields, "error", "way_out"}
    assert (found["status"], found["policy"]) == ("not certified", None)
    assert found["plan"] == str(verdict.plan)
    assert found["lpips"].upper == verdict.bounds["lpips"].upper
    assert found["latency"].value == verdict.bounds["latency"].value
    assert found["speedup"] == pytest.approx(REFERENCE / found["latency"].value, abs=1e-3)
    assert (found["seconds"], found["share_in_pipeline"]) == (812.0, 0.83)


def test_an_unreached_goal_prints_the_fastest_plan(tmp_path: Path) -> None:
    request = a_request(out=tmp_path)
    fake = study(request)
    fake.baseline()
    fake.trial(plan(25), 0.6, 0.3)
    fake.end("none")
    found = unreached(request, NoPlanMeetsGoal("nothing", way_out="raise the budget"))
    assert found["trials"] == 1 and found["baseline"] == Quantity(value=REFERENCE, unit="s")
    assert found["plan"] and found["latency"].value == pytest.approx(0.6 * REFERENCE, rel=0.06)


def test_an_interrupted_run_prints_one_document_and_exits_with_7(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ending(monkeypatch, Interrupted("stopped", way_out="go on with --resume"))
    assert main(["tune", "--budget", "2s", "--out", str(tmp_path), "--device", "cpu",
                 "--json"]) == 7  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "interrupted" and found["way_out"] == "go on with --resume"
    assert found.keys() > TuneResult.model_fields.keys()
    assert found["latency"] is None and found["page"] is None
