"""The most memory that a stretch of work needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from planner.run.devices.base import Backend


@dataclass
class Peak:
    """Peak memory of a device (on a CPU: of the process), in bytes; 0 while still measuring."""

    bytes: int = 0


@contextmanager
def watched(backend: Backend) -> Iterator[Peak]:
    """Measure the peak of everything inside the block, also where it raises."""
    peak = Peak()
    backend.reset_peak()
    try:
        yield peak
    finally:
        backend.synchronize()
        peak.bytes = backend.peak_bytes()
