"""Durations and sizes as people write them: "2s", "850ms", "6GiB", "12 GB"."""

import math
import re

from planner.errors import UsageError

_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_BYTES = {
    "B": 1,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
    "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
}  # fmt: skip
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*")


def parse_seconds(text: str) -> float:
    """Read a duration such as 2s, 850ms, 10m or 1h, in seconds.

    Raises `UsageError` for a missing or unknown unit and for zero.
    """
    return _parse(text, _SECONDS, "a duration", "2s or 850ms")


def parse_bytes(text: str) -> int:
    """Read a size such as 6GiB or 12 GB (decimal), in bytes.

    Raises `UsageError` for a missing or unknown unit and for zero.
    """
    return round(_parse(text, _BYTES, "a size", "12GiB or 800MB"))


def _parse(text: str, scale: "dict[str, float] | dict[str, int]", what: str, like: str) -> float:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        way_out = f"write a number and a unit, like {like}"
        raise UsageError(f"cannot read {text!r} as {what}", value=text, way_out=way_out)
    number, unit = float(match[1]), match[2]
    if unit not in scale:
        way_out = f"use one of {', '.join(scale)}"
        raise UsageError(f"unknown unit {unit!r} in {text!r}", value=text, way_out=way_out)
    if number <= 0 or not math.isfinite(number):
        raise UsageError(f"{text!r} is not above zero", value=text, way_out=f"write {like}")
    return number * scale[unit]


def format_seconds(seconds: float) -> str:
    """Write seconds so that `parse_seconds` reads them back: 850ms, 2s, 12.5s, 10m.

    Rounded to four significant digits: finer than any latency can be measured.
    """
    if seconds < 1:
        return f"{_short(seconds * 1e3)}ms"
    if seconds >= 120 and math.isclose(seconds % 60, 0, abs_tol=1e-9):
        return f"{_short(seconds / 60)}m"
    return f"{_short(seconds)}s"


def format_bytes(size: float) -> str:
    """Write bytes so that `parse_bytes` reads them back, in binary units: 6GiB, 512MiB."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= _BYTES[unit]:
            return f"{_short(size / _BYTES[unit])}{unit}"
    return f"{round(size)}B"


def _short(number: float) -> str:
    text = f"{number:.4g}"
    return text if "e" not in text else f"{number:.0f}"
