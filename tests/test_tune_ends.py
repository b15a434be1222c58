"""How a tuning run ends without a policy: nothing fits, nothing is certified, interrupted."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from planner.case.goal import Goal
from planner.cli.main import run as main
from planner.errors import Interrupted, NoPlanMeetsGoal, NotCertified, PlannerError, UsageError
from planner.policy.file import read_policy
from planner.reporting.tuned import tune_and_report
from planner.run.devices.base import backend
from planner.run.pipeline import PipelineSource
from planner.trials.ledger import Ledger
from planner.tuning.prompts import split_lists
from planner.tuning.request import TuneRequest
from planner.tuning.search import Search
from planner.tuning.session import openings, study_folder
from planner.tuning.tune import run
from tests.tiny import tiny_workload

ROOT = Path(__file__).parent.parent
TEXTS = ("a red circle", "a blue star", "a green square", "a red star")


class Listener:
    """Keeps what a run says, and interrupts it at a line that begins with `at`."""

    def __init__(self, at: str | None = None) -> None:
        self.lines: list[str] = []
        self._at = at

    def say(self, line: str) -> None:
        self.lines.append(line)
        if self._at is not None and line.startswith(self._at):
            raise KeyboardInterrupt

    def tick(self, phase: str, done: float, of: float, incumbent: str) -> None:
        assert done >= 0, (phase, of, incumbent)


def request(out: Path, goal: Goal, **more: object) -> TuneRequest:
    source = PipelineSource(model="tests.tiny:tiny_flux", path=str(ROOT), device="cpu")
    asked = TuneRequest(
        source=source, workload=tiny_workload(num_inference_steps=9), goal=goal, out=out,
        split=split_lists(TEXTS[:1], TEXTS[1:], 0), trials=1,
        without_passes=("compile_blocks", "guidance_interval", "int8_dynamic", "modulation_cache",
                        "uncond_cache"),
    )  # fmt: skip
    return asked.model_copy(update=more)


def ledger(asked: TuneRequest) -> Ledger:
    return Ledger.read(study_folder(asked, backend("cpu").describe()) / "ledger.jsonl")


def test_a_budget_that_nothing_meets_names_the_fastest_seen(tmp_path: Path) -> None:
    asked = request(tmp_path, Goal(budget_seconds=0.001, max_lpips=0.1))
    with pytest.raises(NoPlanMeetsGoal, match=r"the fastest seen is .* LPIPS") as caught:
        run(asked, Listener())
    assert "raise the budget" in caught.value.way_out
    assert caught.value.exit_code == 3
    assert len(ledger(asked).trials()) == 1
    assert not list(tmp_path.glob("policies/**/*.yaml"))


def test_too_few_rounds_certify_nothing_and_a_resumed_study_says_so_again(tmp_path: Path) -> None:
    asked = request(tmp_path, Goal(budget_seconds=100.0, max_lpips=1.5))
    with pytest.raises(Interrupted, match="every finished measurement is kept") as stopped:
        run(asked, Listener(at="search ended"))
    assert "--resume" in stopped.value.way_out
    trials = ledger(asked).trials()
    with pytest.raises(UsageError, match="a study already lies"):
        run(asked, Listener())
    with pytest.raises(NotCertified, match="on 3 unseen prompts") as caught:
        run(asked, Listener(), resume=True)
    assert "--no-certify" in caught.value.way_out
    assert ledger(asked).trials() == trials
    assert len(ledger(asked).bodies("verdict")) == 1


def test_the_policy_is_written_before_what_its_passes_bought_is_measured(tmp_path: Path) -> None:
    asked = request(tmp_path, Goal(budget_seconds=100.0, max_lpips=1.5), certify=False,
                    with_passes=("steps",))  # fmt: skip
    stopped = run(asked, Listener(at="  1 "))
    assert stopped.status == "measured" and stopped.policy is not None
    assert [trial.origin for trial in ledger(asked).trials()] == ["seed", "bought"]
    written = read_policy(next(tmp_path.glob("policies/**/*.yaml")))
    assert written.evidence is not None and written.evidence.trials == 1
    result = run(asked, Listener(), resume=True)
    assert result.status == "measured" and len(ledger(asked).trials()) == 2
    assert result.share_in_pipeline == 0, "what a resumed run only reads takes no share of it"


def test_openings_of_the_prompts_are_counted_over_studies_but_not_over_copies(
    tmp_path: Path,
) -> None:
    asked = request(tmp_path, Goal(budget_seconds=2.0, max_lpips=0.1))
    device = backend("cpu").describe()
    assert openings(asked, device) == 0
    path = study_folder(asked, device) / "ledger.jsonl"
    with closing(Ledger.create(path, {"request": asked.model_dump(mode="json")})) as study:
        study.append("finalists", {"plans": []})
    assert openings(asked, device) == 1
    reseeded = asked.model_copy(update={"split": split_lists(TEXTS[:1], TEXTS[1:], 7)})
    assert openings(reseeded, device) == 1, "other latents under the same texts are no new prompts"
    others = asked.model_copy(update={"split": split_lists(TEXTS[:1], ["a cyan ring"], 0)})
    assert openings(others, device) == 0
    path.with_name("ledger.jsonl.torn-1").write_bytes(path.read_bytes())
    assert openings(asked, device) == 1
    path.with_name("ledger.jsonl.old-1").write_bytes(path.read_bytes())
    assert openings(asked, device) == 2
    path.with_name("ledger.jsonl.old-2").write_text("not a ledger\n" * 2)
    assert openings(asked, device) == 3


def test_a_search_time_in_which_nothing_can_be_tried_is_refused(tmp_path: Path) -> None:
    asked = request(tmp_path, Goal(budget_seconds=2.0, max_lpips=0.1), search_seconds=0.5)
    with pytest.raises(UsageError, match="500ms are too short") as caught:
        run(asked, Listener())
    assert "--search-time" in caught.value.way_out and "--resume" in caught.value.way_out
    assert len(ledger(asked).bodies("noise")) == 1, "what was measured is kept"


def test_a_damaged_study_can_be_started_over(tmp_path: Path) -> None:
    asked = request(tmp_path, Goal(budget_seconds=0.001, max_lpips=0.1))
    path = study_folder(asked, backend("cpu").describe()) / "ledger.jsonl"
    path.parent.mkdir(parents=True)
    for damage in ("", "no ledger\nat all\n"):
        path.write_text(damage)
        with pytest.raises(PlannerError):
            tune_and_report(asked, Listener(), resume=True)
        with pytest.raises(NoPlanMeetsGoal):
            tune_and_report(asked, Listener(), fresh=True)
        assert len(ledger(asked).trials()) == 1


def test_a_page_that_cannot_be_written_does_not_hide_the_outcome(tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("in the way")
    listener = Listener()
    with pytest.raises(NoPlanMeetsGoal):
        tune_and_report(request(tmp_path, Goal(budget_seconds=0.001, max_lpips=0.1)), listener)
    assert listener.lines[-1].startswith("no page: ")


def test_an_unwritable_output_folder_ends_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UsageError, match="cannot write to") as caught:
        run(request(tmp_path / "file", Goal(budget_seconds=2.0)), Listener())
    assert "--out" in caught.value.way_out


def test_an_unreached_goal_is_a_json_document_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join([*TEXTS, "a star", "a circle"]))
    code = main([
        "tune", "tests.tiny:tiny_flux", "--path", str(ROOT), "--budget", "1ms", "--trials", "1",
        "--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path), "--no-certify",
        "--json", "--height", "64", "--width", "64", "--steps", "9", "--guidance", "1",
        "--device", "cpu", "--without", "compile_blocks", "--without", "int8_dynamic",
    ])  # fmt: skip
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert code == 3 and document["status"] == "none" and document["policy"] is None
    assert "the fastest seen is" in document["error"] and document["way_out"] in said.err


def test_an_interrupt_after_the_policy_is_written_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Search, "bought", stop)
    listener = Listener()
    result = run(request(tmp_path, Goal(max_lpips=0.9), certify=False), listener)
    assert result.status == "measured" and read_policy(Path(str(result.policy)))
    assert listener.lines[-1].startswith("stopped while measuring what each pass bought")
