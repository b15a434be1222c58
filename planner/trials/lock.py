"""One writer per study: a lock that the kernel takes back when its holder dies."""

from __future__ import annotations

import fcntl
import os
import platform
from pathlib import Path

from planner.errors import PlannerError, UsageError


class Lock:
    """An exclusive lock beside a file, in `<name>.lock`, held from now until `release`.

    It lies beside the file so that it outlives a replacement of the file. The lock file itself
    stays: only the kernel's lock on it counts, its text says who holds it. Child processes do
    not inherit it. Raises `UsageError` if another process holds it, `PlannerError` if the folder
    cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".lock")
        try:
            self._descriptor: int | None = os.open(
                self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
            )
        except OSError as error:
            way_out = "make the folder writable, or choose another one"
            raise PlannerError(f"cannot lock {path} ({error.strerror})", value=str(path),
                               way_out=way_out) from error  # fmt: skip
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"process {os.getpid()} on {platform.node()}".encode())
        except BlockingIOError as error:
            holder = os.read(self._descriptor, 200).decode(errors="replace")
            self.release()
            raise UsageError(
                f"study {path} is being tuned by {holder or 'another process'}",
                value=str(path),
                way_out="wait for it or stop it",
            ) from error
        except OSError as error:
            self.release()
            raise PlannerError(
                f"cannot lock {path} ({error.strerror})",
                value=str(path),
                way_out="free some space, or put the study on a local disk",
            ) from error

    def release(self) -> None:
        """Let another process take the lock. Releasing twice does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
