"""The lines of a ledger: how a record is written, chained to the one before, and read back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from planner.errors import InvalidFile, PlannerError

FORMAT = "planner-ledger/1"
"""Type and version of the file, written into its first line."""


class Record(NamedTuple):
    """One line of a ledger: its number from one, its kind, its body and its chained checksum."""

    n: int
    kind: str
    body: dict[str, Any]
    sha: str


def _canonical(value: Any) -> str:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _sha(n: int, kind: str, body: dict[str, Any], previous: str) -> str:
    text = _canonical({"n": n, "kind": kind, "body": body, "previous": previous})
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make(before: list[Record], kind: str, body: dict[str, Any]) -> Record:
    """Make the next record; its body is what will be read back (lists for tuples)."""
    n = len(before) + 1
    try:
        body = json.loads(_canonical(body))
        return Record(n, kind, body, _sha(n, kind, body, before[-1].sha if before else ""))
    except (ValueError, TypeError) as error:
        way_out = "record finite numbers, strings, lists and mappings only"
        raise PlannerError(
            f"a {kind} record cannot be written as JSON ({error})", value=kind, way_out=way_out
        ) from error


def encode(record: Record) -> bytes:
    """Encode a record; there is exactly one way, so that a rewritten line shows."""
    body, sha = _canonical(record.body), record.sha
    return f'{{"n":{record.n},"kind":"{record.kind}","body":{body},"sha":"{sha}"}}\n'.encode()


def parse(path: Path, data: bytes) -> tuple[list[Record], int]:
    """Return the records and how many bytes of the data they fill; the rest is a torn line."""
    records: list[Record] = []
    whole = 0
    while whole < len(data):
        end = data.find(b"\n", whole) + 1 or len(data)
        record = _decode(data[whole:end], records)
        if record is None:
            if end < len(data):
                raise _damaged(path, len(records) + 1)
            break
        records.append(record)
        whole = end
    if not records or records[0].kind != "study" or records[0].body.get("format") != FORMAT:
        way_out = "start over with --fresh (the old file is kept beside the new one)"
        raise InvalidFile(f"{path} does not begin with a study of format {FORMAT}",
                          value=str(path), way_out=way_out)  # fmt: skip
    return records, whole


def _decode(line: bytes, before: list[Record]) -> Record | None:
    """Read one line, or answer None if it is not what would have been written here."""
    try:
        found = json.loads(line)
        record = make(before, found["kind"], dict(found["body"]))
    except (ValueError, KeyError, TypeError, RecursionError, PlannerError):
        return None
    return record if encode(record) == line else None


def _damaged(path: Path, line: int) -> InvalidFile:
    way_out = (
        f"restore the file from a copy, or cut it before line {line} to keep what stands above, "
        "or start over with --fresh"
    )
    return InvalidFile(f"line {line} of {path} is damaged", value=line, way_out=way_out)
