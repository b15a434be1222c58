"""YAML as planner reads it: plain data in one document, nothing clever, nothing executed.

Refused: anchors and aliases, tags, duplicate or non-string keys, several documents, oversize or
deep files, numbers that are not finite. Words mean what they do in the core schema of YAML 1.2
(https://yaml.org/spec/1.2.2/#103-core-schema): `true` is a boolean and `null` is None, while
dates, `yes`, `off` and `1:30` stay the text they are.
"""

import math
import re
from pathlib import Path
from typing import Any

import yaml

from planner.errors import InvalidFile, UsageError, nearest

LIMIT_BYTES = 1 << 20
DEPTH = 20

_WORDS = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_INTEGER = re.compile(r"[-+]?[0-9]+")
_DIGITS = 40  # a longer number is no setting, and Python would take long to read it
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|nan)", re.IGNORECASE)


def read(path: Path, *, what: str, limit_bytes: int = LIMIT_BYTES) -> dict[str, Any]:
    """Read a file with `load`; `what` names the kind of file, such as « a search file ».

    Raises `UsageError` where there is no such file, `InvalidFile` where it cannot be read.
    """
    if not path.is_file():
        beside = [str(file) for file in path.parent.glob("*.y*ml")]
        way_out = nearest(str(path), beside) if beside else "check the path"
        raise UsageError(f"there is no file {str(path)!r}", value=str(path), way_out=way_out)
    try:
        with path.open("rb") as file:
            raw = file.read(limit_bytes + 1)
        text = raw.decode() if len(raw) <= limit_bytes else "#" * (limit_bytes + 1)
    except (OSError, UnicodeDecodeError) as error:
        way_out = f"{what} is UTF-8 text that this user may read"
        problem = f"cannot read {path} ({error})"
        raise InvalidFile(problem, value=str(path), way_out=way_out) from error
    return load(text, where=str(path), limit_bytes=limit_bytes)


def load(
    text: str, *, where: str, limit_bytes: int = LIMIT_BYTES, depth: int = DEPTH
) -> dict[str, Any]:
    """Return the one mapping that the text holds; `where` names its origin in messages.

    Raises `InvalidFile` naming the line for everything that the module refuses.
    """
    if len(text.encode(errors="surrogatepass")) > limit_bytes:
        way_out = f"at most {limit_bytes} bytes are read"
        raise InvalidFile(f"{where} is too long", value=where, way_out=way_out)
    builder = _Builder(where, depth)
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            builder.take(event)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        spot = where if mark is None else f"{where}:{mark.line + 1}"
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        way_out = "correct the line, or restore the file from where it came"
        raise InvalidFile(f"{spot} is no YAML ({problem})", value=where, way_out=way_out) from error
    if not isinstance(builder.root, dict):
        way_out = "write `key: value` lines at the top level"
        raise InvalidFile(f"{where} holds no mapping", value=builder.root, way_out=way_out)
    return builder.root


class _Builder:
    """Builds the value from parser events, one frame for every open mapping or list."""

    def __init__(self, where: str, depth: int) -> None:
        self.root: Any = None
        self._where = where
        self._depth = depth
        self._frames: list[tuple[dict[str, Any] | list[Any], int]] = []
        self._keys: list[str | None] = []
        self._documents = 0

    def take(self, event: Any) -> None:
        """Take one parser event."""
        self._refuse_cleverness(event)
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.MappingStartEvent):
            self._open({}, event)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._open([], event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._frames.pop()
            self._keys.pop()

    def _refuse_cleverness(self, event: Any) -> None:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            self._refuse(event, "holds an anchor or alias", event.anchor, "write the value out")
        if getattr(event, "tag", None) is not None:
            self._refuse(event, "holds a tag", event.tag, "plain values need none")
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                self._refuse(event, "starts a second document", "---", "keep one a file")

    def _open(self, container: dict[str, Any] | list[Any], event: Any) -> None:
        if len(self._frames) >= self._depth:
            self._refuse(event, "nests too deep", len(self._frames), f"at most {self._depth} deep")
        self._put(container, event)
        self._frames.append((container, event.start_mark.line))
        self._keys.append(None)

    def _scalar(self, event: Any) -> None:
        if self._frames and isinstance(self._frames[-1][0], dict) and self._keys[-1] is None:
            self._key(self._frames[-1][0], event)
        else:
            self._put(self._plain(event) if event.implicit[0] else event.value, event)

    def _key(self, mapping: dict[str, Any], event: Any) -> None:
        key = event.value
        if event.implicit[0] and not isinstance(self._plain(event), str):
            self._refuse(event, "has a key that is no text", key, f'write "{key}" in quotes')
        if event.implicit[0] and key == "<<":
            self._refuse(event, "merges mappings", key, "write the values out")
        if key in mapping:
            self._refuse(event, f"repeats the key {key!r}", key, "keep one of them")
        self._keys[-1] = key

    def _put(self, value: Any, event: Any) -> None:
        if not self._frames:
            self.root = value
            return
        container = self._frames[-1][0]
        if isinstance(container, list):
            container.append(value)
            return
        key = self._keys[-1]
        if key is None:
            self._refuse(event, "has a key that is no text", value, "keys are plain words")
        else:
            container[key] = value
            self._keys[-1] = None

    def _plain(self, event: Any) -> Any:
        text: str = event.value
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.fullmatch(text):
            if len(text) > _DIGITS:
                self._refuse(event, "holds too long a number", text, f"at most {_DIGITS} digits")
            return int(text)
        number = float(text) if _FLOAT.fullmatch(text) else None
        if _NOT_FINITE.fullmatch(text) or (number is not None and not math.isfinite(number)):
            self._refuse(event, f"holds {text}", text, "write a finite number")
        return text if number is None else number

    def _refuse(self, event: Any, what: str, value: object, way_out: str) -> None:
        spot = f"{self._where}:{event.start_mark.line + 1}"
        raise InvalidFile(f"{spot} {what}", value=value, way_out=way_out)
