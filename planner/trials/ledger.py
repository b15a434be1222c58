"""The ledger: what a study measured, one checksummed and fsynced line per finished record.

It is the only file that a study needs to go on after any kind of death. Every line is
`{"n": …, "kind": …, "body": …, "sha": …}`, where `sha` also covers the line before, so that a
lost, doubled or reordered line shows. A last line that was torn by a crash is dropped after the
file was backed up; damage anywhere else is refused. Optuna's own journal does neither: one torn
line makes the next append unreadable (measured with 5.0.0).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from planner.case.prompts import Sample
from planner.errors import InvalidFile, PlannerError, UsageError, nearest
from planner.trials.lock import Lock
from planner.trials.records import FORMAT, Record, encode, make, parse
from planner.trials.trial import Skipped, Trial

KINDS = (
    "study", "sample", "noise", "start", "trial", "skipped", "lost", "artifact", "finalists",
    "verdict", "end",
)  # fmt: skip
"""Every kind of record; a study's first record is its `study`, and it has only that one."""


class Ledger:
    """An append-only file of records; make one with `create`, `open` or `read`.

    A ledger from `create` or `open` holds the study's lock until it is closed; one from `read`
    is a snapshot that cannot be appended to.
    """

    def __init__(
        self, path: Path, records: list[Record], descriptor: int | None, lock: Lock | None
    ) -> None:
        self.path = path
        self._records = records
        self._descriptor = descriptor
        self._lock = lock
        self._leftovers = False
        self._size = sum(len(encode(record)) for record in records)

    @classmethod
    def create(cls, path: Path, study: dict[str, Any], *, fresh: bool = False) -> Self:
        """Begin a study. With `fresh` an older ledger is kept beside it as `<name>.old-<k>`.

        Raises `UsageError` if the file exists or another tuner holds the study, `PlannerError`
        if it cannot be written.
        """
        with _translated(path), ExitStack() as undo:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = Lock(path)
            undo.callback(lock.release)
            if not fresh:
                refuse_existing(path)
            elif path.exists():
                old = _spare(path, "old")
                path.replace(old)
                undo.callback(old.replace, path)
            descriptor = _open(path, os.O_CREAT | os.O_EXCL)
            undo.callback(path.unlink)
            undo.callback(os.close, descriptor)
            ledger = cls(path, [], descriptor, lock)
            ledger.append("study", {"format": FORMAT, **study})
            _sync_folder(path.parent)
            undo.pop_all()
        return ledger

    @classmethod
    def open(cls, path: Path) -> Self:
        """Go on with a study: the ledger is locked and a torn last line is dropped.

        The file as it was is kept as `<name>.torn-<k>`. Raises `InvalidFile` for damage anywhere
        else, `UsageError` if there is no such file or another tuner holds the study.
        """
        if not path.exists():
            way_out = "begin it without --resume"
            raise UsageError(f"no study lies in {path}", value=str(path), way_out=way_out)
        with _translated(path), ExitStack() as undo:
            lock = Lock(path)
            undo.callback(lock.release)
            data = _read(path)
            records, whole = parse(path, data)
            descriptor = _open(path)
            undo.callback(os.close, descriptor)
            if whole < len(data):
                _drop_tail(path, data, descriptor, whole)
            undo.pop_all()
        return cls(path, records, descriptor, lock)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Look at a study, which may be running: nothing is locked, changed or repaired.

        Raises `InvalidFile` as `open` does; a torn last line is left out.
        """
        return cls(path, parse(path, _read(path))[0], None, None)

    def append(self, kind: str, body: dict[str, Any]) -> None:
        """Write one record and return when it is on the disk.

        Raises `PlannerError` if the disk is full or the file unwritable: what was written of the
        line is taken back, and every earlier record stays.
        """
        if kind not in KINDS:
            way_out = nearest(kind, KINDS)
            raise UsageError(f"no ledger record is called {kind!r}", value=kind, way_out=way_out)
        if self._descriptor is None:
            way_out = "open it with Ledger.open"
            raise UsageError(f"ledger {self.path} is not open for writing", value=str(self.path),
                             way_out=way_out)  # fmt: skip
        record = make(self._records, kind, body)
        line = encode(record)
        with _translated(self.path, kept=len(self._records)):
            self._take_back_leftovers(self._descriptor)
            self._leftovers = True
            _write(self._descriptor, line, self._size)
        self._leftovers = False
        self._size += len(line)
        self._records.append(record)

    def _take_back_leftovers(self, descriptor: int) -> None:
        """Cut off what an append that raised may have left; refuse a file that others changed."""
        if os.fstat(descriptor).st_size == self._size:
            return
        if not self._leftovers:
            way_out = "stop whatever writes to it, then go on with --resume"
            raise InvalidFile(f"ledger {self.path} was changed by something else",
                              value=str(self.path), way_out=way_out)  # fmt: skip
        os.ftruncate(descriptor, self._size)

    @property
    def study(self) -> dict[str, Any]:
        """Return what the study was begun with."""
        body = deepcopy(self._records[0].body)
        del body["format"]
        return body

    def bodies(self, kind: str) -> list[dict[str, Any]]:
        """Return the bodies of all records of a kind, in the order in which they were written."""
        return [deepcopy(record.body) for record in self._records if record.kind == kind]

    def trials(self) -> list[Trial]:
        """Return every finished trial."""
        return [Trial.model_validate(body) for body in self.bodies("trial")]

    def skipped(self) -> list[Skipped]:
        """Return every plan that was not measured, since its prediction ruled it out."""
        return [Skipped.model_validate(body) for body in self.bodies("skipped")]

    def samples(self, role: str | None = None) -> list[Sample]:
        """Return the samples that were taken for a role, or all of them."""
        samples = [Sample.model_validate(body) for body in self.bodies("sample")]
        return [sample for sample in samples if role is None or sample.role == role]

    def lost(self) -> list[dict[str, Any]]:
        """Return the `start` bodies whose `number` has neither a `trial` nor a `lost` record."""
        ended = {body.get("number") for kind in ("trial", "lost") for body in self.bodies(kind)}
        return [body for body in self.bodies("start") if body.get("number") not in ended]

    def close(self) -> None:
        """Let another process go on with the study. Closing twice does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._lock is not None:
            self._lock.release()

    def __len__(self) -> int:
        return len(self._records)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def refuse_existing(path: Path) -> None:
    """Raise `UsageError` where a study lies already, which nobody has said to go on with."""
    if path.exists():
        way_out = "go on with it by --resume, or start over with --fresh"
        raise UsageError(f"a study already lies in {path}", value=str(path), way_out=way_out)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        way_out = "check the path and its permissions"
        raise UsageError(f"cannot read ledger {path} ({error.strerror})", value=str(path),
                         way_out=way_out) from error  # fmt: skip


def _open(path: Path, extra: int = 0) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | extra, 0o644)


def _write(descriptor: int, line: bytes, size: int) -> None:
    """Append a line after `size` good bytes, or take back what was written and raise."""
    try:
        written = 0
        while written < len(line):
            written += os.write(descriptor, line[written:])
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def _drop_tail(path: Path, data: bytes, descriptor: int, whole: int) -> None:
    """Keep a copy of the file as found, then cut the torn line off."""
    spare = _open(_spare(path, "torn"), os.O_CREAT | os.O_EXCL)
    try:
        _write(spare, data, 0)
    finally:
        os.close(spare)
    _sync_folder(path.parent)
    os.ftruncate(descriptor, whole)
    os.fsync(descriptor)


def _spare(path: Path, word: str) -> Path:
    """Return the first free `<name>.<word>-<k>`, k from one."""
    k = 1
    while (spare := path.with_name(f"{path.name}.{word}-{k}")).exists():
        k += 1
    return spare


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: an fsynced file without its name is lost too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _translated(path: Path, kept: int = 0) -> Iterator[None]:
    """Turn the system's refusal to write into a `PlannerError` with its way out."""
    try:
        yield
    except OSError as error:
        way_out = "free some space or make the folder writable, then go on with --resume"
        safe = f"; the {kept} records before it are safe" if kept else ""
        reason = error.strerror or str(error)
        raise PlannerError(f"cannot write ledger {path} ({reason}){safe}", value=str(path),
                           way_out=way_out) from error  # fmt: skip
