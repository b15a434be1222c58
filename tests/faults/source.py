"""The tiny pipeline, from a process that also knows the faulty passes."""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from planner.passes import registry
from tests.tiny import tiny_flux

FAULTS = sorted(
    file.stem for file in Path(__file__).parent.glob("caching/*.py") if file.stem != "__init__"
)


def register() -> None:
    """Make the faulty passes known in this process."""
    registry.names().update({name: f"tests.faults.caching.{name}" for name in FAULTS})


def forget() -> None:
    """Make them unknown again."""
    for name in FAULTS:
        del registry.names()[name]
    registry.get.cache_clear()


def tiny() -> Any:
    """Return the tiny pipeline."""
    register()
    return tiny_flux()


def hanging() -> Any:
    """Start two processes, one in a session of its own, and never return."""
    command = ["sleep", "600"]
    children = [subprocess.Popen(command, start_new_session=alone) for alone in (False, True)]
    print("started", *(child.pid for child in children), flush=True)
    time.sleep(600)


def dying() -> Any:
    """End the process without a word."""
    os._exit(3)


def leaving_a_child() -> Any:
    """End the process, with a child that keeps the pipes open."""
    if os.fork():
        os._exit(4)
    time.sleep(600)
