"""What the rows of claims/ may ask of planner: one short function for every kind of number.

A function is named by a row's `by` and gets the row's `of` as keyword arguments. All of them rest
on the catalogue, the counted work, the passes' effects and the fitted roofline.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any, Literal

from planner.case.noun import Noun, Scalar
from planner.case.work import Phase, Work
from planner.catalog.devices import card, cards
from planner.passes import registry
from planner.passes.quantization import nvfp4
from planner.plans.plan import Plan
from planner.prediction.estimate import Estimate, estimate
from planner.prediction.meta import work_of
from planner.prediction.speeds import Stack
from planner.prediction.summary import PRODUCTS, TERA

GB = 1e9
Words = dict[str, Any]


class Run(Noun):
    """One pipeline call that a claim speaks of: model, size, passes, and the device it is on."""

    model: str
    size: dict[str, Scalar] = {}
    passes: dict[str, dict[str, Scalar]] = {}
    on: str = "h100-sxm"
    stack: Stack = "eager"

    @property
    def work(self) -> Work:
        """Return the work of the call after its passes, in plan order."""
        work = _traced(self.model, tuple(sorted(self.size.items())))
        for one in Plan.of(self.passes).passes:
            work = registry.get(one.name).effect(work, one.parsed(), None)
        return work

    @property
    def denoise(self) -> list[Phase]:
        """Return the phases of the denoiser."""
        return [phase for phase in self.work.phases if phase.name == "denoise"]

    @property
    def estimate(self) -> Estimate:
        """Return the prediction for the device."""
        return estimate(self.work, card(self.on), self.stack)


@cache
def _traced(model: str, size: tuple[tuple[str, Scalar], ...]) -> Work:
    return work_of(model, **dict(size))


def tflops(run: Words, kinds: list[str] | None = None, each: str = "call") -> float:
    """Return the denoiser's products, over all forwards or in each, all of them or some kinds."""
    found = Run.model_validate(run)
    wanted = kinds or PRODUCTS
    total = sum(
        phase.calls * op.flops * op.share / TERA
        for phase in found.denoise for op in phase.operations if op.kind in wanted
    )  # fmt: skip
    return total / found.work.forwards if each == "forward" else total


def attention_share(run: Words) -> float:
    """Return the percentage of the denoiser's products that is attention."""
    return 100 * tflops(run, ["attention"]) / tflops(run)


def forwards(run: Words) -> float:
    """Return how often a call runs the denoiser."""
    return Run.model_validate(run).work.forwards


def fewer_forwards(before: Words, after: Words) -> float:
    """Return how many times fewer forwards the second call has."""
    return forwards(before) / forwards(after)


def parameters(run: Words, phase: str = "denoise") -> float:
    """Return the parameters of a phase's components in billions."""
    parts = Run.model_validate(run).work.parts
    return sum(part.parameters for part in parts if part.phase == phase) / 1e9


def weights(run: Words, phase: str = "denoise") -> float:
    """Return the weights of a phase's components in GB."""
    parts = Run.model_validate(run).work.parts
    return sum(part.bytes for part in parts if part.phase == phase) / GB


def peak(run: Words, unit: Literal["GB", "GiB"] = "GB") -> float:
    """Return the predicted peak of memory."""
    return Run.model_validate(run).estimate.memory.total / {"GB": GB, "GiB": 2**30}[unit]


def change(before: Words, after: Words, of: Literal["weights", "peak", "seconds"]) -> float:
    """Return by how many percent something changes from one call to the other."""
    measure = {"weights": weights, "peak": peak, "seconds": seconds}[of]
    return 100 * (measure(after) / measure(before) - 1)


def seconds(run: Words, skipped: float = 0.0, phase: str | None = None) -> float:
    """Return predicted seconds of a call or phase; a share of the denoising may be skipped."""
    found = Run.model_validate(run).estimate
    if phase is not None:
        return found.by_phase[phase]
    return found.seconds - skipped * found.by_phase["denoise"]


def speedup(before: Words, after: Words, skipped: float = 0.0, phase: str | None = None) -> float:
    """Return how many times faster the second call is predicted to be."""
    return seconds(before, phase=phase) / seconds(after, skipped, phase)


def skipping(run: Words, skipped: float) -> float:
    """Return by how many percent a call gets shorter where a share of its denoising is skipped."""
    return 100 * (seconds(run, skipped) / seconds(run) - 1)


def product(gains: list[Words]) -> float:
    """Return the product of gains that are predicted one by one."""
    return prod(speedup(**gain) for gain in gains)


def efficiency(of: float, before: Words, after: Words, skipped: float) -> float:
    """Return what is left of a product of single gains in the predicted stack."""
    return speedup(before, after, skipped) / of


def phase_share(run: Words, phase: str) -> float:
    """Return the percentage of the predicted seconds that a phase takes."""
    found = Run.model_validate(run).estimate
    return 100 * found.by_phase[phase] / found.seconds


def rate(run: Words, count: float) -> float:
    """Return how many of something (steps, frames) a call makes a second of denoising."""
    return count / seconds(run, phase="denoise")


def frame_rate(run: Words) -> float:
    """Return the frames of a video for each predicted second of the whole call."""
    return float(Run.model_validate(run).size["frames"]) / seconds(run)


def utilisation(run: Words) -> float:
    """Return the percentage of the device's 16-bit peak that the predicted call reaches."""
    return 100 * at_peak(run) / seconds(run)


def at_peak(run: Words) -> float:
    """Return the seconds of the denoiser's products at the device's 16-bit peak."""
    return tflops(run) / device(Run.model_validate(run).on, "peaks.bfloat16")


def device(on: str, fact: str) -> float:
    """Return what the catalogue says of a device: memory_gb, or peaks.bfloat16."""
    found: Any = card(on)
    for part in fact.split("."):
        found = getattr(found, part)
    return float(found)


def cards_that_hold(run: Words, names: str) -> float:
    """Return how many catalogued cards of a family have the memory that a call needs."""
    needed = peak(run) * GB
    return sum(one.memory_bytes >= needed for one in cards().values() if one.id.startswith(names))


def block_bits(element: int, block: int, scale: int) -> float:
    """Return the bits of an element with its share of its block's scale."""
    return element + scale / block


def nvfp4_bits() -> float:
    """Return the bits of an element as the pass nvfp4 counts them."""
    return 8 * nvfp4.NVFP4.value


def nvfp4_block() -> float:
    """Return how many elements share a scale in the pass nvfp4."""
    return nvfp4.BLOCK


def step_bound(steps: int, skipped: int) -> float:
    """Return the most that skipping whole steps can gain."""
    return steps / (steps - skipped)


def cost(latency: float, price: float = 0.0) -> float:
    """Return the change of cost in percent: that of the GPU-seconds times that of their price."""
    return 100 * ((1 + latency / 100) * (1 + price / 100) - 1)


FORMULAS: dict[str, Callable[..., float]] = {
    one.__name__: one
    for one in (tflops, attention_share, forwards, fewer_forwards, parameters, weights, peak,
                change, seconds, speedup, skipping, product, efficiency, phase_share, rate,
                frame_rate, utilisation, at_peak, device, cards_that_hold, block_bits, nvfp4_bits,
                nvfp4_block, step_bound, cost)
}  # fmt: skip
"""Every formula by the name that a row's `by` gives it."""
