"""A whole study on a small real pipeline: killed, resumed, its worker killed, then certified."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from planner.trials.ledger import Ledger

ROOT = Path(__file__).parent.parent
WORDS = ("red", "blue", "green")
SHAPES = ("circle", "square", "star")
SEARCH = """\
model: tests.tiny:tiny_flux
path: {root}
prompts: {prompts}
budget: 100s
max_lpips: 1.5
workload:
  steps: 12
  height: 64
  width: 64
  call: {{true_cfg_scale: 3.0, negative_prompt: "", max_sequence_length: 8}}
without: [compile_blocks]
trials: 5
search_time: 10m
"""


class Study:
    """Runs `planner tune` in a folder and looks at what it leaves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        prompts = [f"{n} {w} {s}" for n in ("a", "two", "left", "on of") for w in WORDS
                   for s in SHAPES]  # fmt: skip
        (folder / "prompts.txt").write_text("\n".join([*prompts, "a star", "circle of star"]))
        text = SEARCH.format(root=ROOT, prompts=folder / "prompts.txt")
        (folder / "search.yaml").write_text(text)

    def start(self, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "planner.cli.main", "tune", "--search",
                   str(self.folder / "search.yaml"), "--out", str(self.folder), "--json",
                   *options]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(command, cwd=ROOT, env=environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip

    @property
    def ledger(self) -> Path:
        return next(iter(self.folder.glob(".planner/*/*/*/ledger.jsonl")), Path("absent"))

    def trials(self) -> int:
        return len(Ledger.read(self.ledger).trials()) if self.ledger.exists() else 0

    def wait_for_trials(self, count: int, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 240
        while self.trials() < count:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "the study does not get on"
            time.sleep(0.05)


def worker_of(process: subprocess.Popen[str]) -> psutil.Process:
    children = psutil.Process(process.pid).children(recursive=True)
    return next(p for p in children if "planner.trials.worker" in p.cmdline())


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Kill the tuner in the middle, resume, kill the worker, let it finish."""
    study = Study(tmp_path_factory.mktemp("study"))
    first = study.start()
    study.wait_for_trials(2, first)
    worker = worker_of(first)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    before = study.ledger.read_bytes()
    gone = psutil.wait_procs([worker], timeout=30)[1] == []
    refused = study.start()
    refusal = refused.communicate(timeout=240)[1]
    second = study.start("--resume")
    study.wait_for_trials(3, second)
    worker_of(second).send_signal(signal.SIGKILL)
    output, errors = second.communicate(timeout=600)
    yield {"study": study, "before": before, "gone": gone, "refusal": refusal,
           "refusal_code": refused.returncode, "code": second.returncode, "output": output,
           "errors": errors}  # fmt: skip


def test_the_worker_dies_with_its_tuner(story: dict[str, Any]) -> None:
    assert story["gone"]


def test_a_study_that_lies_there_is_not_overwritten(story: dict[str, Any]) -> None:
    assert story["refusal_code"] == 2
    assert "--resume" in story["refusal"]


def test_a_killed_study_goes_on_with_nothing_lost_or_measured_twice(story: dict[str, Any]) -> None:
    path = story["study"].ledger
    whole = story["before"][: story["before"].rfind(b"\n") + 1]
    assert path.read_bytes().startswith(whole)
    trials = Ledger.read(path).trials()
    numbers = [trial.number for trial in trials]
    assert len(set(numbers)) == len(numbers)
    measured = [trial.plan for trial in trials if trial.outcome.kind == "measured"]
    assert len(set(measured)) == len(measured)
    samples = [(s.role, s.prompts) for s in Ledger.read(path).samples()]
    assert len(set(samples)) == len(samples)


def test_a_killed_worker_fails_one_trial_and_the_study_goes_on(story: dict[str, Any]) -> None:
    assert story["code"] == 0, story["errors"]
    trials = Ledger.read(story["study"].ledger).trials()
    # A cache may find nothing to reuse in a random model: that trial failed by its own fault.
    failed = [t.outcome.stage for t in trials if t.outcome.kind == "failed"]
    assert [stage for stage in failed if stage != "observe"] == ["crash"]
    assert len([t for t in trials if t.origin != "bought"]) >= 5


def test_the_json_document_has_the_promised_keys(story: dict[str, Any]) -> None:
    found = json.loads(story["output"])
    promised = {"status", "policy", "speedup", "latency", "lpips", "baseline", "trials",
                "seconds", "share_in_pipeline"}  # fmt: skip
    assert promised <= set(found)
    assert found["status"] == "certified"
    assert set(found["latency"]) == {"value", "upper", "unit"}


def test_policy_and_page_are_written_and_the_policy_applies(story: dict[str, Any]) -> None:
    import planner
    from tests.tiny import render, tiny_flux

    found = json.loads(story["output"])
    assert "<html" in Path(found["page"]).read_text()
    pipe = tiny_flux()
    with planner.load(found["policy"]).apply(pipe) as handle:
        assert handle.certified
        image = pipe("a red circle", output_type="np").images[0]
        assert handle.certified
    assert image.shape == render(pipe).shape


def test_finalists_stand_in_the_ledger_before_any_certification_image(
    story: dict[str, Any],
) -> None:
    kinds = []
    for line in story["study"].ledger.read_text().splitlines():
        record = json.loads(line)
        role = record["body"].get("role", "") if record["kind"] == "sample" else ""
        kinds.append("certify" if role.startswith("certify") else record["kind"])
    assert kinds.index("finalists") < kinds.index("certify")


def test_the_same_place_refuses_another_question_and_names_the_difference(
    story: dict[str, Any],
) -> None:
    again = story["study"].start("--resume", "--seed", "7")
    errors = again.communicate(timeout=240)[1]
    assert again.returncode == 2
    assert "request.seed is 7 now and was 0" in errors
