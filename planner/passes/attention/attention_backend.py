"""Choose the kernel that computes the denoiser's attention.

What it does: tells diffusers' dispatcher which kernel the denoiser's attention layers call: one of
torch's own, flash-attention 2 or 3, or SageAttention (queries and keys in 8 bits).
When it helps: long sequences, where attention is a fifth of the work and more: video above all.
What it costs: a package or a kernel from the Hub; with SageAttention a small error.
When not: short sequences, float32, a CPU: torch's own choice is the best there is. A kernel that
cannot take the model's head size or mask fails at the first call.
Source: diffusers' models/attention_dispatch.py, whose checks are the needs here.

`Kernel.need` says in one sentence what each of them lacks in a case. Kernels from the Hub are code
that is downloaded and run: diffusers asks for a publisher that the Hub trusts.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, NamedTuple

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.case.work import Operation, Work
from planner.case.workload import Workload
from planner.hooks.blocks import denoisers_of
from planner.passes.base import (
    Avoid,
    Context,
    Domain,
    Family,
    Fidelity,
    Need,
    Pass,
    Settings,
    Stage,
    Statistics,
    Undo,
    knob,
)

Backend = Literal[
    "sdpa_cudnn", "sdpa_flash", "sdpa_efficient", "sdpa_math", "flash2", "flash2_hub", "flash3",
    "flash3_hub", "sage", "sage_hub",
]  # fmt: skip


class Kernel(NamedTuple):
    """A kernel: diffusers' name for it, the kind that it is priced as, and what it needs."""

    called: str
    kind: str
    least: tuple[int, int] = (0, 0)
    below: tuple[int, int] = (99, 0)
    half: bool = True
    package: str = ""
    on_cpu: bool = False

    def need(self, case: Case) -> str | None:
        """Return what this case lacks, or None."""
        device, dtype = case.device, case.workload.dtype
        if device.kind != "cuda":
            return None if self.on_cpu else f"a CUDA device; this one is a {device.kind}"
        had = device.capability or (0, 0)
        if not self.least <= had < self.below:
            return f"compute capability {self._capability}; this device has {had[0]}.{had[1]}"
        if self.half and dtype not in ("float16", "bfloat16"):
            return f"float16 or bfloat16; this workload's dtype is {dtype}"
        return self._missing(case)

    @property
    def _capability(self) -> str:
        least = f"{self.least[0]}.{self.least[1]}"
        return f"{least} or newer" if self.below[0] == 99 else f"{least} to {self.below[0] - 1}.x"

    def _missing(self, case: Case) -> str | None:
        from packaging.requirements import Requirement

        if not self.package:
            return None
        wanted = Requirement(self.package)
        found = case.device.libraries.get(wanted.name) or _installed(wanted.name)
        if found is not None and wanted.specifier.contains(found, prereleases=True):
            return None
        return f"{self.package}; here is {found or 'none'}"


def _installed(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


_AMPERE, _HOPPER, _BLACKWELL = (8, 0), (9, 0), (10, 0)

KERNELS: dict[str, Kernel] = {
    "sdpa_cudnn": Kernel("_native_cudnn", "cudnn", _AMPERE),
    "sdpa_flash": Kernel("_native_flash", "flash2", _AMPERE),
    "sdpa_efficient": Kernel("_native_efficient", "efficient", (5, 0), half=False),
    "sdpa_math": Kernel("_native_math", "math", half=False, on_cpu=True),
    "flash2": Kernel("flash", "flash2", _AMPERE, package="flash-attn>=2.6.3"),
    "flash2_hub": Kernel("flash_hub", "flash2", _AMPERE, package="kernels>=0.12"),
    "flash3": Kernel("_flash_3", "flash3", _HOPPER, _BLACKWELL, package="flash-attn-3"),
    "flash3_hub": Kernel("_flash_3_hub", "flash3", _HOPPER, _BLACKWELL, package="kernels>=0.12"),
    "sage": Kernel("sage", "sage", _AMPERE, package="sageattention>=2.1.1"),
    "sage_hub": Kernel("sage_hub", "sage", _AMPERE, package="kernels>=0.12"),
}
"""The kernels by the name that a plan uses."""

SEARCHED = tuple(name for name in KERNELS if name != "sdpa_math")
"""What a search may try: torch's plain sums are a reference, and never the fastest."""


class AttentionBackendSettings(Settings):
    """Which kernel."""

    backend: Backend = knob(
        "sdpa_cudnn", "the kernel that attention layers call", choices=SEARCHED
    )


def available(case: Case) -> tuple[str, ...]:
    """Return the kernels that a search may try in this case."""
    return tuple(name for name in SEARCHED if KERNELS[name].need(case) is None)


def narrow(case: Case, telemetry: Telemetry | None) -> dict[str, Domain]:
    """Return the kernels that are available here; all of them where none is."""
    return {"backend": Domain(choices=available(case) or SEARCHED)}


def unfit(case: Case, settings: AttentionBackendSettings) -> str | None:
    """Answer a sentence if this kernel is not available here."""
    said = KERNELS[settings.backend].need(case)
    return said and f"attention_backend {settings.backend} needs {said}"


def apply(pipeline: Any, settings: AttentionBackendSettings, context: Context) -> Undo:
    """Set the kernel on the denoiser's layers; the process keeps its own choice."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Process

    models = denoisers_of(pipeline).values()
    layers = [processor for model in models for processor in _processors(model)]
    before = [(processor, processor._attention_backend) for processor in layers]

    def undo() -> None:
        for processor, backend in before:
            processor._attention_backend = backend

    process = Process._active_backend
    try:
        for model in models:
            model.set_attention_backend(KERNELS[settings.backend].called)
    except BaseException:
        undo()
        raise
    finally:
        Process.set_active_backend(process)
    context.statistics.update(layers=len(layers), backend=settings.backend)
    return undo


def _processors(model: Any) -> list[Any]:
    """Return the attention processors that ask the dispatcher, each once."""
    found = (getattr(module, "processor", None) for module in model.modules())
    return list({id(one): one for one in found if hasattr(one, "_attention_backend")}.values())


def effect(work: Work, settings: AttentionBackendSettings, telemetry: Telemetry | None) -> Work:
    """Name the kind of kernel on the denoiser's attention, whoever packs it."""

    def named(op: Operation) -> Operation:
        if op.kind != "attention":
            return op
        return op.model_copy(update={"kernel": KERNELS[settings.backend].kind})

    return work.mapped(lambda phase: phase.mapped(named) if phase.name == "denoise" else phase)


def observe(
    settings: AttentionBackendSettings, statistics: Statistics, workload: Workload
) -> str | None:
    """Answer a sentence if no layer asks the dispatcher."""
    if statistics.get("layers"):
        return None
    return f"attention_backend found no layer that takes {settings.backend}"


def _choice(case: Case) -> str | None:
    if available(case):
        return None
    said = KERNELS["sdpa_efficient"].need(case)
    return f"attention_backend needs another kernel than torch's own choice: {said}"


def _sage(case: Case, mine: Any, other: Any) -> bool:
    return str(getattr(mine, "backend", "")).startswith("sage")


PASS = Pass(
    name="attention_backend",
    family=Family.ATTENTION,
    stage=Stage.ATTENTION,
    fidelity=Fidelity.APPROXIMATE,
    source="diffusers models/attention_dispatch.py: AttentionBackendName and its checks",
    settings=AttentionBackendSettings,
    owns=("denoiser.attention_kernel",),
    needs=(Need(_choice, "diffusers models/attention_dispatch.py; torch.nn.attention"),),
    avoids=(
        Avoid(
            "compile_blocks",
            "compiled SageAttention drew noise until it had run once uncompiled",
            "thu-ml/SageAttention#162, on an RTX 3090",
            "risky",
            when=_sage,
        ),
        Avoid(
            "cuda_graphs",
            "SageAttention compiles without graphs only",
            "thu-ml/SageAttention#73 #74",
            when=_sage,
        ),
    ),
    effect=effect,
    apply=apply,
    observe=observe,
    narrow=narrow,
    unfit=unfit,
    seeds=({"backend": "sdpa_cudnn"}, {"backend": "flash3_hub"}, {"backend": "sage"}),
    batch_invariant=True,
)
