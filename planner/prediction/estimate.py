"""Predicts one plan on one device: seconds with an interval, memory, and what that rests on."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from planner.case.noun import Noun
from planner.case.work import Work
from planner.catalog.devices import Card
from planner.errors import InvalidFile
from planner.prediction.memory import Memory, peak
from planner.prediction.roofline import Seconds, Speeds, Table, price
from planner.prediction.speeds import (
    FITTED,
    Constants,
    RestsOn,
    Stack,
    fitted,
    margin,
    rests_on,
    speeds,
)


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
    known = fitted()
    footing = rests_on(card, known)
    found = seconds(work, speeds(card, known, stack))
    total, spread = float(found.total[0]), spreads(FITTED)[footing]
    return Estimate(
        seconds=total, low=total / spread, high=total * spread,
        by_phase={name: float(part[0]) for name, part in found.by_phase.items()},
        memory=memory(work, known), rests_on=footing,
    )  # fmt: skip


def seconds(work: Work, device: Speeds) -> Seconds:
    """Return the seconds of one work at given speeds."""
    return price(Table.of([work]), [device])


def memory(work: Work, known: Constants) -> Memory:
    """Return the memory of one work at its peak."""
    return peak(work, margin(known))


@cache
def spreads(file: Path) -> dict[str, float]:
    """Return by how much a prediction may be off, as a factor, by what it rests on."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["spread"]
        return {name: float(value) for name, value in found.items()}
    except (KeyError, ValueError, OSError) as error:
        way_out = "restore the file from the release it came with, or fit again"
        raise InvalidFile(f"{file.name} is damaged", value=str(error), way_out=way_out) from error
