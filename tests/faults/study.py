"""Supervisors for tests, and waiting for what happens in other processes."""

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from planner.run.pipeline import PipelineSource
from planner.trials.supervisor import Supervisor
from tests.tiny import tiny_workload

ROOT = Path(__file__).parent.parent.parent
LONG = 600.0
"""Seconds that nothing here takes unless the machine is in trouble."""


def supervise(folder: Path, model: str = "tests.faults.source:tiny") -> Supervisor:
    source = PipelineSource(model=model, path=str(ROOT), device="cpu")
    workload = tiny_workload(num_inference_steps=4)
    return Supervisor(source, workload, folder / "images", log=folder / "worker.log", threads=1)


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
