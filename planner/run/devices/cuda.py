"""NVIDIA GPUs: the one file that speaks to torch.cuda and NVML."""

from __future__ import annotations

import importlib
import os
from typing import Any

from planner.case.device import Device
from planner.errors import UsageError
from planner.run.devices.base import library_versions

_KERNELS = ("flash-attn", "flash-attn-3", "sageattention", "kernels")
"""Packages that bring attention kernels, where they are installed."""


def available() -> bool:
    """Tell whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


class CudaBackend:
    """Runs on one CUDA device.

    Peak memory is the larger of what torch's allocator reserved and what NVML reports for this
    process: NVML also sees the context and other libraries, but not from inside every container.
    """

    def __init__(self, index: int = 0) -> None:
        """Take a device by number. Raises `UsageError` where there is no such device."""
        import torch

        count = torch.cuda.device_count() if available() else 0
        if index >= count:
            raise UsageError(
                f"device 'cuda:{index}' is not there; torch sees {count} CUDA devices",
                value=f"cuda:{index}",
                way_out="use --device cpu, or install a driver and a CUDA build of torch",
            )
        self.index = index
        self.torch_device = f"cuda:{index}"

    def describe(self) -> Device:
        """Return name, capability, memory, driver and library versions."""
        import torch

        facts = torch.cuda.get_device_properties(self.index)
        extra = {"cuda": torch.version.cuda or "none"}
        return Device(
            kind="cuda",
            name=facts.name,
            capability=(facts.major, facts.minor),
            memory_bytes=facts.total_memory,
            driver=_driver(),
            threads=torch.get_num_threads(),
            libraries=library_versions("torchao", "triton", *_KERNELS) | extra,
        )

    def synchronize(self) -> None:
        """Wait until the device is idle."""
        import torch

        torch.cuda.synchronize(self.index)

    def reset_peak(self) -> None:
        """Give cached blocks back and start counting anew."""
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.index)

    def peak_bytes(self) -> int:
        """Return the most bytes that this process held on the device since `reset_peak`."""
        import torch

        return max(torch.cuda.max_memory_reserved(self.index), self._process_bytes())

    def _process_bytes(self) -> int:
        """Return what NVML says this process holds now; 0 where it cannot say.

        Read after the work: torch's allocator gives nothing back before `empty_cache`.
        """
        import torch

        uuid = f"GPU-{torch.cuda.get_device_properties(self.index).uuid}"
        return int(_nvml(lambda nvml: _held(nvml, uuid), 0))


def _held(nvml: Any, uuid: str) -> int:
    handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
    mine = [p for p in nvml.nvmlDeviceGetComputeRunningProcesses(handle) if p.pid == os.getpid()]
    return sum(process.usedGpuMemory or 0 for process in mine)


def _driver() -> str | None:
    found: str | None = _nvml(lambda nvml: nvml.nvmlSystemGetDriverVersion(), None)
    return found


def _nvml(question: Any, otherwise: Any) -> Any:
    """Ask NVML; `otherwise` where its library is missing or the container hides the answer."""
    try:
        pynvml = importlib.import_module("pynvml")
    except ImportError:
        return otherwise
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return otherwise
    try:
        return question(pynvml)
    except pynvml.NVMLError:
        return otherwise
    finally:
        pynvml.nvmlShutdown()
