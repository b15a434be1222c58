"""A device that does not exist: declared facts, for matching and graphs without the hardware."""

from __future__ import annotations

from dataclasses import dataclass

from planner.case.device import Device
from planner.errors import UsageError
from planner.run.devices.base import library_versions


@dataclass(frozen=True)
class FakeBackend:
    """A null device with a declared capability, memory and speed.

    It computes nothing (tensors lie on torch's meta device) and measures nothing: asking it for
    a measurement is an error, so that no invented figure can enter an outcome.
    """

    name: str = "fake"
    capability: tuple[int, int] | None = None
    memory_bytes: int = 2**34
    flops_per_second: float = 1e12
    bytes_per_second: float = 1e11
    torch_device: str = "meta"

    def describe(self) -> Device:
        """Return what was declared."""
        return Device(
            kind="fake",
            name=self.name,
            capability=self.capability,
            memory_bytes=self.memory_bytes,
            libraries=library_versions(),
        )

    def synchronize(self) -> None:
        """Return at once: nothing runs here."""

    def reset_peak(self) -> None:
        """Raise: there is nothing to measure."""
        raise self._refusal()

    def peak_bytes(self) -> int:
        """Raise: there is nothing to measure."""
        raise self._refusal()

    def _refusal(self) -> UsageError:
        what = f"device {self.name!r} is declared, not real; it measures nothing"
        return UsageError(what, value=self.name, way_out="measure on cpu or cuda")
