"""A worker process that hangs, dies, or loses its tuner leaves nothing running."""

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from planner.errors import InvalidFile, PlannerError, TrialFailed, UsageError
from planner.run.pipeline import PipelineSource
from planner.trials.process import WorkerProcess
from planner.trials.protocol import Load, Refused
from tests.faults.study import LONG, ROOT, gone, supervise, wait_for, when
from tests.tiny import tiny_workload


def test_a_hanging_worker_is_killed_at_its_deadline_with_all_it_started(tmp_path: Path) -> None:
    process = WorkerProcess(tmp_path / "log", os.environ)
    refused = process.ask(load("tests.faults.source:missing"), LONG, "loading")
    assert isinstance(refused, Refused)
    with pytest.raises(TrialFailed, match="still loading after 5 s and was killed") as caught:
        process.ask(load("tests.faults.source:hanging"), 5.0, "loading")
    assert caught.value.stage == "timeout" and "more time" in caught.value.way_out
    *_, word, one, other = str(caught.value.value).split()
    assert word == "started" and not process.alive
    for pid in (one, other):
        wait_for(functools.partial(gone, int(pid)))


def load(model: str) -> Load:
    """Return the request to load a function's pipeline."""
    source = PipelineSource(model=model, path=str(ROOT), device="cpu")
    return Load(source=source, workload=tiny_workload(), images="images")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT interrupt: a suite that a shell runs in the background inherits ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_ends_the_worker_with_all_it_started(
    tmp_path: Path, interruptible: None
) -> None:
    log = tmp_path / "worker.log"
    interrupt = when(
        lambda: log.exists() and log.read_text().endswith("\n"),
        lambda: os.kill(os.getpid(), signal.SIGINT),
    )
    with (
        pytest.raises(KeyboardInterrupt),
        supervise(tmp_path, "tests.faults.source:hanging"),
    ):
        raise AssertionError("it loaded")
    interrupt.join()
    for pid in log.read_text().split()[1:]:
        wait_for(functools.partial(gone, int(pid)))


@pytest.mark.parametrize(("name", "code"), [("dying", 3), ("leaving_a_child", 4)])
def test_a_worker_that_ends_by_itself_is_reported_with_its_exit_code(
    tmp_path: Path, name: str, code: int
) -> None:
    with pytest.raises(TrialFailed, match=f"exit code {code}") as caught:
        supervise(tmp_path, f"tests.faults.source:{name}").__enter__()
    assert caught.value.stage == "crash" and "worker.log" in caught.value.way_out


def test_an_unknown_model_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot import 'nowhere:pipeline'") as caught:
        supervise(tmp_path, "nowhere:pipeline").__enter__()
    assert caught.value.value == "nowhere:pipeline" and "--path" in caught.value.way_out


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PlannerError, match="cannot start a worker") as caught:
        WorkerProcess(tmp_path / "file" / "log", os.environ)
    assert "file/log" in str(caught.value.value) and "--out" in caught.value.way_out


def test_the_worker_dies_with_a_killed_tuner(tmp_path: Path) -> None:
    program = (
        "import os, sys, time; from pathlib import Path; "
        "from planner.trials.process import WorkerProcess; "
        "print(WorkerProcess(Path(sys.argv[1]), os.environ).pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tuner:
        assert tuner.stdout is not None
        worker = int(tuner.stdout.readline())
        assert psutil.pid_exists(worker)
        tuner.kill()
    wait_for(lambda: gone(worker))


def test_errors_cross_the_pipe_whole() -> None:
    for error in (
        TrialFailed("it broke", stage="guard", value="evidence", way_out="mend it"),
        InvalidFile("bad file", value="x.yaml", way_out="write it again"),
    ):
        other = Refused.of(error).unpack()
        assert (type(other), str(other), other.value) == (type(error), str(error), error.value)
        assert getattr(other, "stage", None) == getattr(error, "stage", None)
