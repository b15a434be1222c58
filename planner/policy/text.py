"""Writes plain data as YAML with deterministic bytes that mean the same in YAML 1.1 and 1.2.

Mappings and lists stand one entry a line, except small ones without inner structure, which
stand on one line, and lists of numbers, which stand eight a line. Strings are bare where no
parser could take them for something else, and double-quoted everywhere else.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

_WIDTH = 92
_NUMBERS_A_LINE = 8

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./+-]*")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(ms|s|min|m|h|B|[KMGT]iB|[kKMGT]B)")
_HASH = re.compile(r"[0-9a-f]{12,}")
_RESERVED = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null", "none"})
"""Words that some YAML parser reads as something other than text (none: Python readers do)."""


def to_yaml(document: Mapping[str, Any]) -> str:
    """Return the YAML text of a mapping of plain JSON values, in the order of its keys."""
    lines = [line for key, value in document.items() for line in _entry(key, value, 0)]
    return "\n".join(lines) + "\n"


def _entry(key: str, value: Any, indent: int) -> list[str]:
    head = f"{' ' * indent}{_string(key)}:"
    if _stands_on_one_line(value, len(head), top=indent == 0):
        return [f"{head} {_inline(value)}"]
    if isinstance(value, Mapping):
        return [head, *(line for k, v in value.items() for line in _entry(k, v, indent + 2))]
    if any(isinstance(item, Mapping | list) for item in value):
        return [head, *(line for item in value for line in _item(item, indent + 2))]
    return _columns(head, value, indent + 2)


def _item(value: Any, indent: int) -> list[str]:
    """Return the lines of one list entry, the first with its dash."""
    if not isinstance(value, Mapping) or not value:
        return [f"{' ' * indent}- {_inline(value)}"]
    lines = [line for k, v in value.items() for line in _entry(k, v, indent + 2)]
    return [f"{' ' * indent}- {lines[0].lstrip()}", *lines[1:]]


def _columns(head: str, values: list[Any], indent: int) -> list[str]:
    """Return a long list of scalars, eight a line when they are numbers, else one a line."""
    numbers = all(isinstance(value, int | float) for value in values)
    size = _NUMBERS_A_LINE if numbers else 1
    texts = [_inline(value) for value in values]
    rows = [", ".join(texts[i : i + size]) for i in range(0, len(texts), size)]
    lines = [f"{' ' * indent}{row}" for row in rows]
    return [f"{head} [", *(f"{line}," for line in lines[:-1]), f"{lines[-1]}]"]


def _stands_on_one_line(value: Any, before: int, *, top: bool) -> bool:
    if not isinstance(value, Mapping | list) or not value:
        return True
    inner = value.values() if isinstance(value, Mapping) else value
    if any(isinstance(item, Mapping) or (isinstance(item, list) and item) for item in inner):
        return False
    if isinstance(value, Mapping) and top:
        return False
    return before + 1 + len(_inline(value)) <= _WIDTH


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_string(k)}: {_inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return _float(value) if isinstance(value, float) else str(value)


def _float(value: float) -> str:
    """Write the shortest digits that read back equal, with the dot that YAML 1.1 asks for."""
    text = repr(value)
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


def _string(text: str) -> str:
    bare = _WORD.fullmatch(text) or _QUANTITY.fullmatch(text)
    if bare and not _HASH.fullmatch(text) and text.lower() not in _RESERVED:
        return text
    return "".join(map(_escaped, json.dumps(text, ensure_ascii=False)))


def _escaped(character: str) -> str:
    """Escape what is legal in JSON and yet no printable character of YAML."""
    code = ord(character)
    if character.isprintable() and code != 0xFEFF:
        return character
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
