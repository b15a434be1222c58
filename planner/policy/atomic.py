"""Replaces a file as a whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from planner.errors import PlannerError, UsageError

_PLACE = frozenset({
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST,
    errno.EISDIR, errno.ENAMETOOLONG,
})  # fmt: skip
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def replace(path: Path, content: bytes) -> None:
    """Write a file so that at any moment either the old or the new one is there, whole.

    Folders are made as needed. Raises `UsageError` where the place cannot be written to and
    `PlannerError` where the disk is full or fails; the old file is then as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, content)
    except OSError as error:
        reason = error.strerror or str(error)
        problem = f"cannot write {path} ({reason})"
        if error.errno in _PLACE:
            way_out = "name a folder that this user may write to"
            raise UsageError(problem, value=str(path), way_out=way_out) from error
        way_out = "make room on the disk" if error.errno in _FULL else "check the disk"
        way_out += " and run the command again; the file that was there is untouched"
        raise PlannerError(problem, value=str(path), way_out=way_out) from error


def _replace(path: Path, content: bytes) -> None:
    # In the target's own folder: a rename across file systems is a copy, which can be torn.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes private files; policies are shared
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the new name itself outlive a power cut."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows opens no folders
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
