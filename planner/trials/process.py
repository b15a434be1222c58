"""One worker process: started, asked with a deadline, and killed with everything it started.

The worker has a session of its own, so that Ctrl-C reaches the tuner alone; it dies with the
tuner because its request pipe then ends.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil
from pydantic import ValidationError

from planner.case.noun import Noun
from planner.errors import PlannerError, TrialFailed
from planner.trials.protocol import REPLY, Answer, encode

_GRACE = 3.0
"""Seconds between asking a process group to end and ending it."""

_TAIL_BYTES = 4000
_TAIL_LINES = 15


class WorkerProcess:
    """A running worker; `ask` it, then `stop` it. Its output is appended to the log file."""

    def __init__(self, log: Path, environment: Mapping[str, str]) -> None:
        """Start the process. Raises `PlannerError` if the log cannot be written."""
        self._log = log
        self._buffer = b""
        self._ended = False
        # Pipes from os.pipe are not inherited by other children: this process alone holds ours.
        theirs_in, self._requests = os.pipe()
        self._replies, theirs_out = os.pipe()
        command = [sys.executable, "-P", "-m", "planner.trials.worker"]
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    [*command, str(theirs_in), str(theirs_out)], stdin=subprocess.DEVNULL,
                    stdout=output, stderr=output, env=dict(environment),
                    pass_fds=(theirs_in, theirs_out), start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            self._close_pipes()
            what = f"cannot start a worker that writes to {log} ({error.strerror})"
            way_out = "make the folder writable, or choose another one with --out"
            raise PlannerError(what, value=str(log), way_out=way_out) from error
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        os.set_blocking(self._requests, False)
        os.set_blocking(self._replies, False)

    @property
    def pid(self) -> int:
        """Return the number of the process, which is also that of its group."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Tell whether the process can be asked; what a dead one left running is ended."""
        if self._process.poll() is None:
            return True
        self._kill()
        return False

    def ask(self, request: Noun, seconds: float, doing: str) -> Answer:
        """Send a request and wait for its reply; `doing` says in a failure what was going on.

        Raises `TrialFailed` (stage timeout) after `seconds`, and (stage crash) if the process
        dies. Whatever is raised, an interrupt included, the process is gone then.
        """
        began = self._log.stat().st_size
        until = time.monotonic() + seconds
        try:
            self._send(encode(request), until)
            return REPLY.validate_json(self._receive(until))
        except TimeoutError as error:
            self._kill()
            raise TrialFailed(
                f"the worker was still {doing} after {seconds:.4g} s and was killed",
                stage="timeout",
                value=self._tail(began),
                way_out="leave the pass out, or allow more time",
            ) from error
        except (EOFError, BrokenPipeError, ValidationError) as error:
            how = self._how_it_died()
            raise TrialFailed(
                f"the worker died while {doing} ({how})",
                stage="crash",
                value=f"{how}\n{self._tail(began)}".strip(),
                way_out=f"see {self._log}",
            ) from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process and everything it started: asked first, then killed."""
        self._kill(signal.SIGTERM)

    def _kill(self, first: signal.Signals = signal.SIGKILL) -> None:
        if self._ended:
            return  # the number may belong to another process by now
        self._ended = True
        started = self._descendants()
        self._signal_group(first)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        self._signal_group(signal.SIGKILL)
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.kill()  # it had left the group; psutil never hits a reused number
        self._process.wait()
        self._close_pipes()

    def _descendants(self) -> list[psutil.Process]:
        try:
            found: list[psutil.Process] = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return found

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _send(self, line: bytes, until: float) -> None:
        while line:
            self._wait_for(self._requests, selectors.EVENT_WRITE, until)
            line = line[os.write(self._requests, line) :]

    def _receive(self, until: float) -> bytes:
        while b"\n" not in self._buffer:
            self._wait_for(self._replies, selectors.EVENT_READ, until)
            chunk = os.read(self._replies, 2**16)
            if not chunk:
                raise EOFError
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _wait_for(self, pipe: int, event: int, until: float) -> None:
        """Wait until a pipe is ready.

        Raises `TimeoutError`, or `EOFError` where the worker is dead but something that it
        started keeps the pipe open.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, event)
            while not selector.select(max(0.0, min(1.0, until - time.monotonic()))):
                if time.monotonic() >= until:
                    raise TimeoutError
                if not self.alive:
                    raise EOFError

    def _how_it_died(self) -> str:
        """Return signal or exit code; the rest of its group is ended."""
        try:
            code = self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            code = None
        self._kill()
        if code is None:
            return "it closed its pipes"
        if code >= 0:
            return f"exit code {code}"
        likely = ", likely because the system ran out of memory" if code == -signal.SIGKILL else ""
        return f"signal {-code}, {signal.strsignal(-code)}{likely}"

    def _tail(self, began: int) -> str:
        """Return the last lines that the worker wrote since a place in its log."""
        with self._log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(began, end - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-_TAIL_LINES:])

    def _close_pipes(self) -> None:
        os.close(self._requests)
        os.close(self._replies)
