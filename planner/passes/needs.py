"""What several passes ask of a case, and how telemetry narrows what a search tries."""

from __future__ import annotations

from collections.abc import Callable

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.hooks.reuse import informative
from planner.passes.base import Domain, Masks, Need


def fused_adapters(name: str) -> Need:
    """Return the need that no adapter is loaded beside the weights that a pass replaces."""

    def _fused_adapters(case: Case) -> str | None:
        loaded = ", ".join(case.model.adapters)
        return f"{name} needs adapters fused; loaded are {loaded}" if loaded else None

    return Need(_fused_adapters, "huggingface/diffusers#10621: fuse LoRA before quantizing")


def block_list(name: str) -> Need:
    """Return the need that diffusers knows the denoiser's repeated blocks."""

    def _block_list(case: Case) -> str | None:
        said = f"{name} needs a known block list; {case.model.traits.denoiser_class} has none"
        return None if case.model.traits.blocks else said

    return Need(_block_list, "diffusers.hooks TransformerBlockRegistry")


def compute_capability(name: str, least: tuple[int, int], source: str) -> Need:
    """Return the need of a GPU of this CUDA compute capability or a newer one."""

    def _compute_capability(case: Case) -> str | None:
        device = case.device
        if device.kind == "cuda" and (device.capability or (0, 0)) >= least:
            return None
        wanted = f"{name} needs compute capability {least[0]}.{least[1]} or newer"
        if device.kind != "cuda":
            return f"{wanted}; this device is a {device.kind}"
        had = "an unknown one" if device.capability is None else "{}.{}".format(*device.capability)
        return f"{wanted}; this device has {had}"

    return Need(_compute_capability, source)


def one_denoiser(name: str) -> Need:
    """Return the need that one model denoises: a pass on the first of two experts is half on."""

    def _one_denoiser(case: Case) -> str | None:
        first = case.model.traits.denoiser
        if f"{first}_2" not in case.model.components:
            return None
        return f"{name} needs one denoiser; this pipeline has {first} and {first}_2"

    return Need(_one_denoiser, "diffusers WanPipeline: transformer_2 denoises below boundary_ratio")


def on_cuda(name: str, because: str) -> Need:
    """Return the need of a CUDA device; `because` is the source that says why."""

    def _on_cuda(case: Case) -> str | None:
        kind = case.device.kind
        return None if kind == "cuda" else f"{name} needs a CUDA device; this one is a {kind}"

    return Need(_on_cuda, because)


def narrowed(
    setting: str, telemetry: Telemetry, masks: Callable[[float, Telemetry], Masks],
    most: float = 10.0,
) -> dict[str, Domain]:  # fmt: skip
    """Return a threshold's domain from what skips nothing to what skips all that it can.

    `masks` tells which steps a threshold computes, and `most` is the largest that it may be;
    empty where no value changes anything.
    """

    def computed(value: float) -> float:
        return sum(mask.count("1") for run in masks(value, telemetry) for mask in run.values())

    found = informative(computed, 1e-4, most)
    return {} if found is None else {setting: Domain(low=found[0], high=found[1], log=True)}
