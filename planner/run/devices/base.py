"""What every device offers to the measuring rooms, and how one is chosen."""

from __future__ import annotations

from importlib import metadata
from typing import Protocol

from planner.case.device import Device
from planner.errors import UsageError, nearest

KINDS = ("cpu", "cuda", "fake")


class Backend(Protocol):
    """One processor: where tensors go, what it is, when it is idle, how much memory it took."""

    @property
    def torch_device(self) -> str:
        """Return the device as torch names it, such as cuda:0."""
        ...

    def describe(self) -> Device:
        """Return the noun for this device, with the versions of the libraries that drive it."""
        ...

    def synchronize(self) -> None:
        """Wait until everything that was asked of the device is done."""
        ...

    def reset_peak(self) -> None:
        """Start a new measurement of peak memory."""
        ...

    def peak_bytes(self) -> int:
        """Return the most memory in use since `reset_peak`, in bytes."""
        ...


def backend(kind: str | None = None) -> Backend:
    """Return the backend for "cpu", "cuda", "cuda:1" or "fake"; None takes the best there is.

    Raises `UsageError` for an unknown kind and for CUDA where there is none.
    """
    name, _, number = (kind or _best()).partition(":")
    if name not in KINDS or (number and not number.isdigit()) or (number and name != "cuda"):
        what = f"no device is called {kind!r}"
        raise UsageError(what, value=kind, way_out=nearest(name, KINDS))
    if name == "cuda":
        from planner.run.devices.cuda import CudaBackend

        return CudaBackend(int(number or 0))
    if name == "fake":
        from planner.run.devices.fake import FakeBackend

        return FakeBackend()
    from planner.run.devices.cpu import CpuBackend

    return CpuBackend()


def _best() -> str:
    from planner.run.devices.cuda import available

    return "cuda" if available() else "cpu"


def library_versions(*more: str) -> dict[str, str]:
    """Return the versions of the libraries that decide speed and output, `more` where installed.

    Local parts such as +cpu are left out: they name a build, and torch's public release is what
    a requirement can state.
    """
    import planner

    found = {"planner": planner.__version__}
    for name in ("torch", "diffusers", "transformers"):
        found[name] = metadata.version(name).partition("+")[0]
    installed = {name: _version(name) for name in more}
    return found | {name: text for name, text in installed.items() if text is not None}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None
