"""Artifacts too long to stand in a policy: `.safetensors` files named by their sha256.

The format is https://huggingface.co/docs/safetensors (8 bytes of header length, a JSON header,
raw numbers). Lists of numbers become F64 or I64 tensors, so that they read back bit-equal; what
holds them is one JSON text in the header's metadata, with `{"__tensor__": n}` in the place of each.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from planner.case.noun import Scalar
from planner.errors import InvalidFile
from planner.passes.base import Artifact

INLINE_LIMIT = 4096
"""Characters of JSON up to which an artifact stands inside the policy."""

LIMIT_BYTES = 1 << 26
_SHORT = 8
_TENSOR = "__tensor__"
_WORDS = {"F64": "d", "I64": "q"}


def is_long(artifact: Artifact) -> bool:
    """Tell whether an artifact belongs into a file of its own."""
    return len(json.dumps(artifact)) > INLINE_LIMIT


def encode(artifact: Artifact) -> bytes:
    """Return the bytes of an artifact's file: the same artifact, the same bytes."""
    tensors: list[list[int] | list[float]] = []
    frame = json.dumps(_without_numbers(artifact, tensors), sort_keys=True)
    header: dict[str, Any] = {"__metadata__": {"artifact": frame}}
    body = b""
    for index, values in enumerate(tensors):
        kind = "I64" if isinstance(values[0], int) else "F64"
        raw = struct.pack(f"<{len(values)}{_WORDS[kind]}", *values)
        spot = [len(body), len(body) + len(raw)]
        header[str(index)] = {"dtype": kind, "shape": [len(values)], "data_offsets": spot}
        body += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight
    return struct.pack("<Q", len(text)) + text + body


def file_name(content: bytes) -> str:
    """Return the name that a file with this content bears."""
    return f"{hashlib.sha256(content).hexdigest()}.safetensors"


def read(path: Path) -> Artifact:
    """Read an artifact's file, which must be what its name says.

    Raises `InvalidFile` where it is missing, oversize, changed, or no artifact.
    """
    way_out = "put the file back beside the policy, or tune again"
    try:
        with path.open("rb") as file:
            content = file.read(LIMIT_BYTES + 1)
    except OSError as error:
        problem = f"cannot read the artifact {path} ({error.strerror})"
        raise InvalidFile(problem, value=str(path), way_out=way_out) from error
    if len(content) > LIMIT_BYTES or file_name(content) != path.name:
        problem = f"the artifact {path} is not the one that the policy names"
        raise InvalidFile(problem, value=str(path), way_out=way_out)
    try:
        return _decode(content)
    except (ValueError, KeyError, IndexError, TypeError, struct.error, RecursionError) as error:
        problem = f"{path} holds no artifact of planner ({error})"
        raise InvalidFile(problem, value=str(path), way_out=way_out) from error


def _decode(content: bytes) -> Artifact:
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    frame = json.loads(header["__metadata__"]["artifact"])
    found = _with_numbers(frame, header, content[8 + length :])
    if not isinstance(found, dict):
        raise ValueError("it holds no mapping")
    return found


def _without_numbers(value: Any, tensors: list[list[int] | list[float]]) -> Any:
    """Return the value with every long list of numbers moved into `tensors`."""
    if isinstance(value, dict):
        return {key: _without_numbers(inner, tensors) for key, inner in value.items()}
    if not isinstance(value, list):
        return value
    if len(value) > _SHORT and {type(item) for item in value} in ({int}, {float}):
        tensors.append(value)
        return {_TENSOR: len(tensors) - 1}
    return [_without_numbers(inner, tensors) for inner in value]


def _with_numbers(value: Any, header: dict[str, Any], body: bytes) -> Any:
    """Put the numbers back where `_without_numbers` took them from."""
    if isinstance(value, list):
        return [_with_numbers(inner, header, body) for inner in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_TENSOR}:
        return _numbers(header[str(value[_TENSOR])], body)
    return {key: _with_numbers(inner, header, body) for key, inner in value.items()}


def _numbers(entry: dict[str, Any], body: bytes) -> list[Scalar]:
    start, stop = entry["data_offsets"]
    return list(struct.unpack(f"<{entry['shape'][0]}{_WORDS[entry['dtype']]}", body[start:stop]))
