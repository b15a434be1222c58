"""The processor of this machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from planner.case.device import Device
from planner.hooks.integer import cpu_engines
from planner.run.devices.base import library_versions

_INTERESTING = frozenset({
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
    "avx_vnni", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
})  # fmt: skip
_GRAIN = 2**26


def use_threads_of(device: Device) -> None:
    """Compute on as many threads as a CPU that was measured, unless OMP_NUM_THREADS says otherwise.

    For commands, which own their process; a library leaves torch's threads to its caller.
    """
    import torch

    if device.kind == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(device.threads, os.cpu_count() or 1))


class CpuBackend:
    """Runs on the CPU with torch's own number of threads.

    Peak memory is the peak resident size of the whole process. Linux can reset it (writing 5 to
    /proc/self/clear_refs); elsewhere, and where a container forbids it, it is the peak since
    the process began, which is why a trial's worker is a process of its own.
    """

    torch_device = "cpu"

    def describe(self) -> Device:
        """Return name, threads, instruction sets, memory and library versions."""
        import psutil
        import torch

        facts = _cpuinfo()
        words = set(facts.get("flags", facts.get("Features", "")).split())
        capability = torch.backends.cpu.get_cpu_capability().lower()
        # The kernel keeps a share of its own that differs between boots: rounded to 64 MiB.
        memory = psutil.virtual_memory().total // _GRAIN * _GRAIN
        return Device(
            kind="cpu",
            name=facts.get("model name") or platform.processor() or platform.machine(),
            memory_bytes=memory,
            threads=torch.get_num_threads(),
            features=tuple(sorted(
                (words & _INTERESTING) | {f"torch:{capability}"}
                | {f"int8:{engine}" for engine in cpu_engines()}
            )),
            libraries=library_versions("onnxruntime"),
        )

    def synchronize(self) -> None:
        """Return at once: a CPU call returns when it is done."""

    def reset_peak(self) -> None:
        """Make the present resident size the peak, where the system can do so."""
        clear = Path("/proc/self/clear_refs")
        if os.access(clear, os.W_OK):
            clear.write_text("5")

    def peak_bytes(self) -> int:
        """Return the peak resident size of this process, in bytes."""
        for line in _lines(Path("/proc/self/status")):
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's facts in /proc/cpuinfo; nothing where there is no such file."""
    facts: dict[str, str] = {}
    for line in _lines(Path("/proc/cpuinfo")):
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    return facts


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []
