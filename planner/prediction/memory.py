"""Predicts the peak of a device's memory: weights in their place, activations, what passes keep."""

from __future__ import annotations

from planner.case.noun import Noun
from planner.case.work import Part, Phase, Work


class Memory(Noun):
    """Bytes at the peak of one pipeline call, by what holds them, and the phase it falls in.

    `margin` is what the allocator loses to fragments, and the device's own context.
    """

    phase: str
    weights: float
    activations: float
    kept: float
    margin: float

    @property
    def total(self) -> float:
        """Return the peak in bytes."""
        return self.weights + self.activations + self.kept + self.margin


class Margin(Noun):
    """What is lost beside tensors: bytes of context, and a share of the activations.

    `old` is how many times the activations a pipeline before torch 2 takes.
    """

    context: float
    fragments: float
    old: float = 1.0


def peak(work: Work, margin: Margin) -> Memory:
    """Return the memory of the phase that needs the most."""
    return max((_of(phase, work, margin) for phase in work.phases), key=lambda one: one.total)


def peak_within(work: Work, margin: Margin, room: float) -> Memory:
    """Return the memory on a device of so many bytes.

    Where they do not hold the copies that convolutions make, kernels that make none are taken.
    """
    found = peak(work, margin)
    if found.total <= room:
        return found
    return peak(work.mapped(lambda p: p.model_copy(update={"copies": 1.0})), margin)


def _of(phase: Phase, work: Work, margin: Margin) -> Memory:
    kept = work.kept if phase.name == "denoise" else 0.0
    active = phase.peak * phase.copies * margin.old
    return Memory(
        phase=phase.name,
        weights=_resident(work.parts, phase),
        activations=active,
        kept=kept,
        margin=margin.context + margin.fragments * (active + kept),
    )


def _resident(parts: tuple[Part, ...], phase: Phase) -> float:
    """Return the bytes of weights on the device while a phase runs.

    Components that rest on the host come in one at a time, two experts among them.
    """
    there = sum(part.bytes for part in parts if part.place == "device")
    mine = [part for part in parts if part.phase == phase.name]
    visiting = [part.bytes for part in mine if part.place == "host"]
    windows = [part.window for part in mine if part.place == "streamed"]
    return there + max([*visiting, *windows], default=0.0)
