"""A worker renders, fails, hangs and dies; the study goes on and nothing is left running."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from planner.case.prompts import Prompt
from planner.errors import InvalidFile, PlannerError, TrialFailed, UsageError
from planner.plans.plan import BASELINE, Plan
from planner.run.pipeline import PipelineSource
from planner.trials.process import WorkerProcess
from planner.trials.protocol import Refused
from planner.trials.renderer import failing_at
from planner.trials.supervisor import Supervisor, require_same
from tests.faults import source as faults
from tests.tiny import tiny_workload

ROOT = Path(__file__).parent.parent
PROMPTS = [Prompt(text="a red circle", seed=1), Prompt(text="two blue square", seed=2)]
SAME = 1e-9
"""Above the LPIPS of an image to itself: its two passes through AlexNet round differently."""
LONG = 120.0
"""Seconds that nothing here takes unless the machine is in trouble."""


@pytest.fixture(scope="module", autouse=True)
def _known_faults() -> Iterator[None]:
    faults.register()
    yield
    faults.forget()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


def supervise(
    folder: Path, model: str = "tests.faults.source:tiny", load_deadline: float = 900.0
) -> Supervisor:
    source = PipelineSource(model=model, path=str(ROOT), device="cpu")
    workload = tiny_workload(num_inference_steps=4)
    return Supervisor(source, workload, folder / "images", log=folder / "worker.log", threads=1,
                      load_deadline=load_deadline)  # fmt: skip


@pytest.fixture(scope="module")
def worker(folder: Path) -> Iterator[Supervisor]:
    """One supervisor with the untouched images of PROMPTS as references."""
    with supervise(folder) as supervisor:
        supervisor.render("baseline", PROMPTS, LONG)
        yield supervisor
    assert supervisor.pid is None


def test_entering_loads_the_pipeline_and_says_what_it_is(worker: Supervisor) -> None:
    assert worker.case.model.pipeline == "FluxPipeline"
    assert worker.case.workload.guidance == "sequential"
    assert worker.case.device.threads == 1
    assert worker.load_seconds > 0


def test_the_worker_has_a_session_of_its_own(worker: Supervisor) -> None:
    """So that Ctrl-C in the terminal reaches the tuner alone."""
    assert worker.pid is not None
    assert os.getsid(worker.pid) == os.getpgid(worker.pid) == worker.pid != os.getsid(0)


def test_the_empty_plan_draws_the_untouched_images(worker: Supervisor, folder: Path) -> None:
    put = worker.put(BASELINE, {}, PROMPTS, LONG)
    samples = worker.render("candidate", PROMPTS, LONG)
    assert [len(sample.lpips) for sample in samples] == [1, 1]
    assert all(sample.lpips[0] < SAME for sample in samples)
    assert [sample.prompts for sample in samples] == [(prompt.id,) for prompt in PROMPTS]
    assert all(sample.seconds > 0 and sample.memory_bytes > 2**20 for sample in samples)
    assert put.first_call_seconds > 0 and put.artifacts == {}
    for prompt in PROMPTS:
        ours = folder / "images" / BASELINE.digest()[:12] / f"{prompt.id}.png"
        reference = folder / "images" / "baseline" / f"{prompt.id}.png"
        assert ours.read_bytes() == reference.read_bytes()


def test_the_untouched_pipeline_renders_while_a_plan_is_on(worker: Supervisor) -> None:
    worker.put(Plan.of({"steps": {"num_inference_steps": 2}}), {}, PROMPTS, LONG)
    far, near, again = (
        worker.render(which, PROMPTS[:1], LONG, save=False)[0].lpips[0]
        for which in ("candidate", "baseline", "candidate")
    )
    assert near < SAME < far and again == far


def test_every_second_is_either_pipeline_or_overhead(worker: Supervisor) -> None:
    began, before = time.monotonic(), worker.pipeline_seconds + worker.overhead_seconds
    worker.put(BASELINE, {}, PROMPTS, LONG)
    samples = worker.render("candidate", PROMPTS, LONG)
    spent = worker.pipeline_seconds + worker.overhead_seconds - before
    assert sum(sample.seconds for sample in samples) < spent <= time.monotonic() - began


def test_images_are_kept_only_where_asked(worker: Supervisor, folder: Path) -> None:
    plan = Plan.of({"steps": {"num_inference_steps": 3}})
    new = Prompt(text="a green star", seed=3)
    worker.put(plan, {}, [new], LONG)
    for which in ("candidate", "baseline"):
        assert worker.render(which, [new], LONG, save=False)[0].lpips == ()
    assert not list((folder / "images").rglob(f"{new.id}.png"))


def test_an_unknown_calibration_is_learned_on_top_of_the_passes_before(
    worker: Supervisor,
) -> None:
    plan = Plan.of({"steps": {"num_inference_steps": 2}, "learns": {}})
    put = worker.put(plan, {}, PROMPTS, LONG)
    assert put.artifacts == {"learns": {"steps": [0, 0, 1, 1] * len(PROMPTS)}}
    assert put.calibrate_seconds > put.apply_seconds
    given = {"learns": {"steps": [7]}}
    assert worker.put(plan, given, PROMPTS, LONG).artifacts == given
    assert worker.render("candidate", PROMPTS, LONG)[0].statistics["learns"] == {"learned": 1}


def failing(worker: Supervisor, name: str, stage: str) -> TrialFailed:
    """Put a faulty pass on and return the failure."""
    with pytest.raises(TrialFailed) as caught:
        worker.put(Plan.of({name: {}}), {}, PROMPTS, LONG)
    assert caught.value.stage == stage
    assert caught.value.way_out
    return caught.value


@pytest.mark.parametrize(
    ("name", "stage", "said"),
    [("idles", "observe", "no step was reused"), ("blackens", "guard", "is black")],
)
def test_a_refused_picture_fails_the_trial_and_keeps_the_worker(
    worker: Supervisor, name: str, stage: str, said: str
) -> None:
    before = worker.pid
    assert said in failing(worker, name, stage).what
    with pytest.raises(UsageError, match="no plan is on"):
        worker.render("candidate", PROMPTS, LONG)
    worker.put(BASELINE, {}, PROMPTS, LONG)
    assert worker.render("candidate", PROMPTS[:1], LONG)[0].lpips[0] < SAME
    assert worker.pid == before


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to")])
def test_a_lack_of_memory_is_named_however_deep_it_lies(error: Exception) -> None:
    failed = TrialFailed("int8 failed", stage="apply", way_out="…")
    failed.__cause__ = error
    with (
        pytest.raises(TrialFailed, match="ran out of memory") as caught,
        failing_at("apply", BASELINE),
    ):
        raise failed
    assert caught.value.stage == "memory" and type(error).__name__ in str(caught.value.value)


def test_a_worker_killed_while_it_renders_is_a_failed_trial_and_the_study_goes_on(
    worker: Supervisor, folder: Path
) -> None:
    plan = Plan.of({"steps": {"num_inference_steps": 3}})
    worker.put(plan, {}, PROMPTS, LONG)
    many = [Prompt(text="a star", seed=seed) for seed in range(100, 140)]
    first = folder / "images" / plan.digest()[:12] / f"{many[0].id}.png"
    before, victim = worker.restarts, worker.pid
    assert victim is not None
    killer = when(first.exists, lambda: os.kill(victim, signal.SIGKILL))
    with pytest.raises(TrialFailed, match="ran out of memory") as caught:
        worker.render("candidate", many, LONG)
    killer.join()
    assert caught.value.stage == "crash" and "signal 9" in str(caught.value.value)
    assert "worker.log" in caught.value.way_out
    sample = worker.render("candidate", PROMPTS[:1], LONG)[0]
    assert sample.lpips[0] > SAME, "the plan is on again"
    assert worker.restarts == before + 1 and worker.pid != victim


def test_a_plan_without_an_undo_gets_a_worker_to_itself(worker: Supervisor) -> None:
    worker.put(Plan.of({"keeps": {}}), {}, PROMPTS, LONG)
    before = worker.restarts
    assert worker.render("candidate", PROMPTS[:1], LONG)[0].lpips[0] > SAME
    assert worker.restarts == before
    assert worker.render("baseline", PROMPTS[:1], LONG)[0].lpips[0] < SAME
    assert worker.restarts == before + 1


def test_a_pass_that_fails_to_go_on_costs_the_worker_and_nothing_else(worker: Supervisor) -> None:
    error = failing(worker, "explodes", "apply")
    assert "no such kernel" in error.what
    assert 'raise RuntimeError("no such kernel")' in str(error.value)
    assert worker.pid is None


def test_a_hanging_worker_is_killed_at_its_deadline_with_all_it_started(tmp_path: Path) -> None:
    hanging = supervise(tmp_path, "tests.faults.source:hanging", load_deadline=4.0)
    with pytest.raises(TrialFailed, match="after 4 s and was killed") as caught, hanging:
        raise AssertionError("it loaded")
    assert caught.value.stage == "timeout" and "more time" in caught.value.way_out
    words = str(caught.value.value).split()
    assert words[0] == "started" and len(words) == 3
    for pid in words[1:]:
        wait_for(functools.partial(gone, int(pid)))
    assert hanging.pid is None and hanging.overhead_seconds > 4


@pytest.mark.parametrize(("name", "code"), [("dying", 3), ("leaving_a_child", 4)])
def test_a_worker_that_ends_by_itself_is_reported_with_its_exit_code(
    tmp_path: Path, name: str, code: int
) -> None:
    with pytest.raises(TrialFailed, match=f"exit code {code}") as caught:
        supervise(tmp_path, f"tests.faults.source:{name}").__enter__()
    assert caught.value.stage == "crash" and "worker.log" in caught.value.way_out


def test_a_source_that_changes_between_loads_is_refused(worker: Supervisor) -> None:
    other = worker.case.model.model_copy(update={"revision": "another"})
    with pytest.raises(PlannerError, match="another pipeline") as caught:
        require_same(worker.case, worker.case.model_copy(update={"model": other}))
    assert caught.value.value == "tests.faults.source:tiny" and "--fresh" in caught.value.way_out
    require_same(worker.case, worker.case.model_copy(deep=True))


def test_an_unknown_model_is_the_users_error(folder: Path) -> None:
    with pytest.raises(UsageError, match="cannot import 'nowhere:pipeline'") as caught:
        supervise(folder, "nowhere:pipeline").__enter__()
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


def gone(pid: int) -> bool:
    """Tell whether a process has ended; one that nobody has waited for yet counts."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.01)


def when(condition: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Act in the background as soon as a condition holds."""

    def watch() -> None:
        wait_for(condition)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread
