"""Predicts one plan on one device: seconds with an interval, memory, and what that rests on."""

from __future__ import annotations

from planner.case.noun import Noun
from planner.case.work import Work
from planner.catalog.devices import Card
from planner.prediction.memory import Memory, peak_within
from planner.prediction.roofline import Table, price
from planner.prediction.speeds import FITTED, RestsOn, Stack, fit_of, margin, rests_on, speeds


class Estimate(Noun):
    """Predicted seconds of one pipeline call with their interval, by phase, and memory in bytes.

    The interval holds four of five published rows that were left out of the fit, those of the
    device's kind of footing: `rests_on`.
    """

    seconds: float
    low: float
    high: float
    by_phase: dict[str, float]
    memory: Memory
    rests_on: RestsOn


def estimate(work: Work, card: Card, stack: Stack = "eager") -> Estimate:
    """Return what a work takes on a catalogued device.

    Raises `UsageError` where the device lacks a unit that the work multiplies with.
    """
    fit = fit_of(FITTED)
    known, footing = fit.constants, rests_on(card, fit.constants)
    found = price(Table.of([work]), [speeds(card, known, stack)])
    total, spread = float(found.total[0]), fit.spread[footing]
    return Estimate(
        seconds=total, low=total / spread, high=total * spread,
        by_phase={name: float(part[0]) for name, part in found.by_phase.items()},
        memory=peak_within(work, margin(known, stack), card.memory_bytes), rests_on=footing,
    )  # fmt: skip
