"""A worker renders, fails, and dies; the study goes on."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from planner.case.prompts import Prompt
from planner.case.telemetry import group_residual
from planner.errors import PlannerError, TrialFailed, UsageError
from planner.plans.plan import BASELINE, Plan
from planner.run.pipeline import PipelineSource
from planner.trials.failing import failing_at
from planner.trials.process import WorkerProcess
from planner.trials.renderer import Renderer, batches
from planner.trials.supervisor import Supervisor, require_same
from tests.faults import source as faults
from tests.faults.study import LONG, supervise, when
from tests.source import ROOT
from tests.tiny import tiny_workload

PROMPTS = [Prompt(text="a red circle", seed=1), Prompt(text="two blue square", seed=2)]
SAME = 1e-9
"""Above the LPIPS of an image to itself: its two passes through AlexNet round differently."""


@pytest.fixture(scope="module", autouse=True)
def _known_faults() -> Iterator[None]:
    faults.register()
    yield
    faults.forget()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


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


def test_a_plans_memory_is_its_own_calls_peak_and_not_that_of_untouched_calls_between(
    tmp_path: Path,
) -> None:
    source = PipelineSource(model="tests.tiny:tiny_flux", path=str(ROOT), device="cpu")
    renderer = Renderer(source, tiny_workload(num_inference_steps=2), tmp_path)

    class Scripted:
        """Stands in for a device whose peaks are known: one a call, in order."""

        torch_device = "cpu"
        calls, peaks = 0, (0, 100, 900, 50)

        def reset_peak(self) -> None:
            self.calls += 1

        def peak_bytes(self) -> int:
            return self.peaks[self.calls]

        def synchronize(self) -> None: ...

    vars(renderer)["_backend"] = Scripted()
    renderer.put(BASELINE, {}, PROMPTS[:1])
    untouched = renderer.render("baseline", PROMPTS[:1], save=False)
    ours = renderer.render("candidate", PROMPTS[:1], save=False)
    assert [s.memory_bytes for s in (*untouched, *ours)] == [900, 100]


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
    learned = {"steps": [0, 0, 1, 1] * len(PROMPTS), "calibration": 1}
    assert put.artifacts == {"learns": learned}
    assert worker.put(plan, {}, PROMPTS, LONG).artifacts == put.artifacts, "not learned again"
    given = {"learns": {"steps": [7]}}
    assert worker.put(plan, given, PROMPTS, LONG).artifacts == given
    assert worker.render("candidate", PROMPTS, LONG)[0].statistics["learns"] == {"learned": 1}


def test_reference_calls_are_recorded_under_a_plan_which_is_off_afterwards(
    worker: Supervisor,
) -> None:
    worker.put(BASELINE, {}, PROMPTS, LONG)
    found = worker.record(Plan.of({"steps": {"num_inference_steps": 3}}), PROMPTS, LONG)
    assert found.steps == 3 and len(found.runs) == len(PROMPTS) and found.runs[0] != found.runs[1]
    for run in found.runs:
        assert set(run) == {"cond", "uncond"}
        groups = map(group_residual, range(4))
        shown = {"latents", "output", "residual", *groups}
        assert set(run["cond"]) == shown, "too short for caches"
    with pytest.raises(UsageError, match="no plan is on"):
        worker.render("candidate", PROMPTS, LONG)
    near = worker.render("baseline", PROMPTS[:1], LONG)[0]
    assert near.lpips[0] < SAME


def test_a_short_last_batch_is_filled_up_from_the_first_prompts() -> None:
    a, b, c = (Prompt(text="a star", seed=seed) for seed in range(3))
    assert batches([a, b, c], 1) == [((a,), 1), ((b,), 1), ((c,), 1)]
    assert batches([a, b, c], 2) == [((a, b), 2), ((c, a), 1)]
    assert batches([a], 3) == [((a, a, a), 1)]


def test_a_cache_that_replays_an_image_is_found_at_the_next_prompt(worker: Supervisor) -> None:
    worker.put(Plan.of({"replays": {}}), {}, PROMPTS, LONG)
    assert worker.render("candidate", PROMPTS[:1], LONG)[0].lpips[0] < SAME
    with pytest.raises(TrialFailed, match="repeats the image before it") as caught:
        worker.render("candidate", PROMPTS[1:], LONG)
    assert caught.value.stage == "guard"


def failing(worker: Supervisor, name: str, stage: str) -> TrialFailed:
    """Put a faulty pass on and return the failure."""
    with pytest.raises(TrialFailed) as caught:
        worker.put(Plan.of({name: {}}), {}, PROMPTS, LONG)
    assert caught.value.stage == stage
    assert caught.value.way_out
    return caught.value


@pytest.mark.parametrize(
    ("name", "stage", "said"),
    [("idles", "observe", "no step was reused"), ("blackens", "guard", "is black"),
     ("stumbles", "observe", "KeyError: 'computed'")],
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


def test_a_pass_that_does_not_come_off_costs_its_trial_and_not_the_study(
    worker: Supervisor,
) -> None:
    worker.put(Plan.of({"sticks": {}}), {}, PROMPTS, LONG)
    with pytest.raises(TrialFailed, match="it does not come off") as caught:
        worker.render("baseline", PROMPTS[:1], LONG)
    assert caught.value.stage == "crash" and "undo" in str(caught.value.value)
    worker.put(BASELINE, {}, PROMPTS, LONG)
    assert worker.render("candidate", PROMPTS[:1], LONG)[0].lpips[0] < SAME


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


def test_a_plan_without_an_undo_gets_a_worker_to_itself_and_the_untouched_call_is_warmed(
    worker: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.put(Plan.of({"keeps": {}}), {}, PROMPTS, LONG)
    before = worker.restarts
    assert worker.render("candidate", PROMPTS[:1], LONG)[0].lpips[0] > SAME
    assert worker.restarts == before
    asked: list[Any] = []
    ask = WorkerProcess.ask

    def recorded(process: WorkerProcess, request: Any, *rest: Any) -> Any:
        asked.append(request)
        return ask(process, request, *rest)

    monkeypatch.setattr(WorkerProcess, "ask", recorded)
    steady = worker.pipeline_seconds
    timed = [worker.render("baseline", PROMPTS[:1], LONG)[0] for _ in range(2)]
    assert timed[0].lpips[0] < SAME and worker.restarts == before + 1
    assert [request.kind for request in asked] == ["load", "render", "render", "render"]
    assert not asked[1].save and asked[2].save
    assert worker.pipeline_seconds - steady == pytest.approx(sum(s.seconds for s in timed))


def test_a_pass_that_fails_to_go_on_costs_the_worker_and_nothing_else(worker: Supervisor) -> None:
    error = failing(worker, "explodes", "apply")
    assert "no such kernel" in error.what
    assert 'raise RuntimeError("no such kernel")' in str(error.value)
    assert worker.pid is None


def test_a_source_that_changes_between_loads_is_refused(worker: Supervisor) -> None:
    other = worker.case.model.model_copy(update={"revision": "another"})
    with pytest.raises(PlannerError, match="another pipeline") as caught:
        require_same(worker.case, worker.case.model_copy(update={"model": other}))
    assert caught.value.value == "tests.faults.source:tiny" and "--fresh" in caught.value.way_out
    require_same(worker.case, worker.case.model_copy(deep=True))
