"""The worker process: `python -m planner.trials.worker READ WRITE`, two inherited pipe ends.

It answers one request at a time. When the request pipe ends, the tuner is dead, and the worker
ends at once with everything that it started, also in the middle of a call.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from planner.errors import PlannerError, TrialFailed
from planner.trials.protocol import (
    REQUEST,
    Load,
    Loaded,
    Put,
    PutOn,
    Record,
    Recorded,
    Refused,
    Render,
    Rendered,
    encode,
)

if TYPE_CHECKING:
    from planner.trials.renderer import Renderer

_SOUND_AFTER = frozenset({"guard", "observe"})
"""Stages of failures after which the pipeline is as it should be: only its output was refused."""


class Worker:
    """Answers requests with one pipeline; whatever goes wrong becomes a `Refused` reply."""

    def __init__(self) -> None:
        self._renderer: Renderer | None = None

    def answer(
        self, request: Load | PutOn | Render | Record
    ) -> Loaded | Put | Rendered | Recorded | Refused:
        """Do what is asked."""
        try:
            return self._answer(request)
        except PlannerError as error:
            traceback.print_exc()
            sound = isinstance(error, TrialFailed) and error.stage in _SOUND_AFTER
            return Refused.of(error, spoiled=not sound)
        except Exception as error:
            traceback.print_exc()
            # A pass that is at fault costs its trial, never the study.
            unexpected = TrialFailed(
                f"the worker failed unexpectedly ({type(error).__name__}: {error})",
                stage="crash",
                value=traceback.format_exc()[-3000:],
                way_out="see its log, and please report it",
            )
            return Refused.of(unexpected, spoiled=True)
        finally:
            gc.collect()

    def _answer(
        self, request: Load | PutOn | Render | Record
    ) -> Loaded | Put | Rendered | Recorded:
        if isinstance(request, Load):
            return self._load(request)
        if self._renderer is None:
            raise PlannerError("no pipeline is loaded", way_out="send a load request first")
        if isinstance(request, PutOn):
            return self._renderer.put(
                request.plan, request.artifacts, request.prompts, settle=request.settle
            )
        if isinstance(request, Record):
            return Recorded(telemetry=self._renderer.record(request.plan, request.prompts))
        samples = self._renderer.render(request.which, request.prompts, request.save)
        return Rendered(samples=tuple(samples))

    def _load(self, request: Load) -> Loaded:
        began = time.perf_counter()
        from planner.trials.renderer import Renderer

        try:
            self._renderer = Renderer(request.source, request.workload, Path(request.images))
        except PlannerError:
            raise
        except Exception as error:
            raise TrialFailed(
                f"{request.source.model!r} cannot be loaded ({type(error).__name__}: {error})",
                stage="load",
                value=traceback.format_exc()[-3000:],
                way_out="load it in a plain Python session to see more",
            ) from error
        seconds = time.perf_counter() - began
        return Loaded(case=self._renderer.case, seconds=seconds)


def main(reading: int, writing: int) -> None:
    """Answer requests until the pipe ends."""
    faulthandler.enable()  # a segmentation fault leaves its stack in the log
    for pipe in (reading, writing):
        os.set_inheritable(pipe, False)
    requests: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(reading, requests), daemon=True).start()
    worker = Worker()
    with os.fdopen(writing, "wb") as replies:
        while True:
            reply = worker.answer(REQUEST.validate_json(requests.get()))
            replies.write(encode(reply))
            replies.flush()


def _listen(pipe: int, requests: SimpleQueue[bytes]) -> None:
    """Hand requests over. The pipe's end is the tuner's: nobody waits for an answer any more.

    The thread sleeps in a read while something is timed, and so costs nothing.
    """
    with os.fdopen(pipe, "rb") as lines:
        for line in lines:
            requests.put(line)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
