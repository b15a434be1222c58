"""Finds the roofline's constants from published rows.

The first stage takes 16-bit rows without techniques; what stands on it, units for narrow types,
anchors of caches and the margin of memory, takes the ratios to them and the peaks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from planner.catalog.devices import cards
from planner.prediction.anchors import learn, share
from planner.prediction.memory import Margin
from planner.prediction.protocols import printed
from planner.prediction.published import Row, pairs
from planner.prediction.replay import Sample, Skipped, sample
from planner.prediction.roofline import Columns, Seconds, Table, price
from planner.prediction.speeds import Constants, speeds

FREE = {
    "linear": 0.3, "convolution": 0.5, "flash2": 0.3, "hopper": 0.5, "early": 0.5, "flash3": 0.3,
    "sage": 0.5, "compiled": 0.2, "engine": 0.2, "old": 0.2, "bandwidth": 0.08, "cached": 0.3,
    "launch": 0.3, "launch_compiled": 0.3, "ramp": 0.3, "call": 0.7, "step": 0.7, "power": 0.7,
    "desktop": 0.4, "step_fused": 1.5,
}  # fmt: skip
"""Constants of the first stage, and how far each strays from its prior, in logarithms.

Those of devices are fitted beside them.
"""

UNITS = ("float8", "int8", "float4")
"""Constants of the second stage."""

_SPREAD = 0.15
"""How far a device's own factor strays from one, in logarithms, before the data say so."""

_DOUBT = 0.5
"""How far a constant of the second stage strays from its prior, in logarithms."""

_MARGIN, _MARGIN_DOUBT = (0.5, 0.1, 1.5), (0.5, 0.1, 0.5)
"""What is lost of memory before the data say so, and how far that strays: gigabytes of context,
share of fragments, times the activations before torch 2."""

_STEP = 1e-5
"""By how much unknowns move for a derivative."""

_CORNER = 0.1
"""Errors above this count linearly, not squared: tables have outliers."""


def trusted(row: Row) -> bool:
    """Tell whether a row may teach: confidence A or B."""
    return row.confidence in ("A", "B")


def plain(row: Row) -> bool:
    """Tell whether a row is a 16-bit baseline on one device: no cache, no offload."""
    half = row.precision in ("fp16", "bf16", "bf16/fp16")
    return bool(half and row.cache == "none" and row.offload == "none" and row.seconds)


def gather(rows: Sequence[Row]) -> tuple[list[Sample], Counter[str]]:
    """Return the samples of rows that can be replayed, and how many cannot for which reason."""
    found: list[Sample] = []
    skipped: Counter[str] = Counter()
    for row in rows:
        try:
            found.append(sample(row))
        except Skipped as reason:
            skipped[reason.reason] += 1
    return found, skipped


class Prices:
    """Predicts the seconds of samples under any constants; all of them at once."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        """Lay the samples' operations out as columns."""
        self.samples = list(samples)
        self.table = Table.of([one.work for one in samples])
        self._pairs = sorted({(one.card.id, one.row.stack) for one in samples})
        self._which = [self._pairs.index((one.card.id, one.row.stack)) for one in samples]
        self._halves = np.array(["ACCUMULATE" in one.row.note.upper() for one in samples])
        self.seen = np.log([one.row.seconds or np.nan for one in samples])

    def logs(self, known: Constants) -> Columns:
        """Return the logarithm of each sample's predicted seconds; NaN without a cache's anchor."""
        found = self.parts(known)
        shares = [share(one.row.cache, one.row.frames > 1, known.caches) for one in self.samples]
        less = np.array([np.nan if s is None else 1 - s for s in shares])
        out: Columns = np.log(found.total - less * found.by_phase["denoise"])
        return out

    def parts(self, known: Constants) -> Seconds:
        """Return each sample's predicted seconds as though it had no cache."""
        each = np.stack([speeds(cards()[c], known, stack).row()  # type: ignore[arg-type]
                         for c, stack in self._pairs])[self._which]  # fmt: skip
        # Kernels that add up in float16 run at twice the rate of those that torch uses.
        each[self._halves, 2] *= 2
        return price(self.table, each)


def fit(
    prices: Prices, use: NDArray[np.bool_] | None = None, start: Constants | None = None
) -> Constants:
    """Return the constants of the first stage from the samples in use; `start` is a near fit."""
    use = np.ones(len(prices.samples), bool) if use is None else use
    problem = _FirstStage(prices, use)
    found = least_squares(
        problem.errors, problem.begun(start), jac=problem.slopes, x_scale="jac",
        max_nfev=40 if start is None else 15,
    )  # fmt: skip
    return problem.constants(found.x)


class _FirstStage:
    """The logarithms of constants and of devices' factors as unknowns of least squares."""

    def __init__(self, prices: Prices, use: NDArray[np.bool_]) -> None:
        self.prices, self.use = prices, use
        cards_ = [one.card.id for one in prices.samples]
        self.names = sorted({card for card, used in zip(cards_, use, strict=True) if used})
        place = {name: len(FREE) + index for index, name in enumerate(self.names)}
        self.column = np.array([place.get(card, -1) for card in cards_])
        self.prior = Constants()
        self.centre = np.log([getattr(self.prior, name) for name in FREE])
        self.doubt = np.array([*FREE.values(), *[_SPREAD] * len(self.names)])
        self._known: tuple[bytes, Columns] = (b"", np.array([]))

    def begun(self, start: Constants | None) -> Columns:
        """Return the unknowns to begin with."""
        if start is None:
            return np.concatenate([self.centre, np.zeros(len(self.names))])
        values = [getattr(start, name) for name in FREE]
        own = [start.devices.get(name, 1.0) for name in self.names]
        return np.asarray(np.log([*values, *own]), np.float64)

    def constants(self, x: Columns) -> Constants:
        """Return the constants that unknowns stand for."""
        values = np.exp(x).tolist()
        own = dict(zip(self.names, values[len(FREE) :], strict=True))
        found = dict(zip(FREE, values[: len(FREE)], strict=True)) | {"devices": own}
        return self.prior.model_copy(update=found)

    def _logs(self, x: Columns) -> Columns:
        """Return predicted logarithms; those of the last unknowns are remembered."""
        if self._known[0] != x.tobytes():
            self._known = (x.tobytes(), self.prices.logs(self.constants(x)))
        return self._known[1]

    def errors(self, x: Columns) -> Columns:
        """Return errors of samples, then how far unknowns strayed, in units of their doubt."""
        wrong = (self._logs(x) - self.prices.seen)[self.use]
        strayed = x - np.concatenate([self.centre, np.zeros(len(self.names))])
        return np.concatenate([_bent(wrong / _CORNER), strayed / self.doubt])

    def slopes(self, x: Columns) -> Columns:
        """Return the derivatives of errors. A sample has one device: all of them move at once."""
        here = self._logs(x)
        out = np.zeros((len(here), len(x)))
        for place in range(len(FREE)):
            out[:, place] = self._moved(x, [place], here)
        every = self._moved(x, list(range(len(FREE), len(x))), here)
        taught = np.flatnonzero(self.column >= 0)
        out[taught, self.column[taught]] = every[taught]
        wrong = (here - self.prices.seen)[self.use] / _CORNER
        scaled = out[self.use] * (_slope(wrong) / _CORNER)[:, None]
        return np.vstack([scaled, np.diag(1 / self.doubt)])

    def _moved(self, x: Columns, places: list[int], here: Columns) -> Columns:
        there = x.copy()
        there[places] += _STEP
        return (self.prices.logs(self.constants(there)) - here) / _STEP


def _bent(errors: Columns) -> Columns:
    """Return errors whose squares grow linearly beyond one (soft L1)."""
    out: Columns = np.sign(errors) * np.sqrt(2 * (np.sqrt(1 + errors**2) - 1))
    return out


def _slope(errors: Columns) -> Columns:
    """Return the derivative of `_bent`."""
    sizes, bent = np.abs(errors), np.abs(_bent(errors))
    out = np.ones_like(errors)
    np.divide(sizes / np.sqrt(1 + errors**2), bent, out=out, where=bent > _STEP)
    return out


def memory_errors(samples: Sequence[Sample], lost: Margin) -> Columns:
    """Return the logarithm of predicted over printed memory for samples that print one."""
    predicted = [
        printed(one.row, one.work, one.loaded, one.card.memory_bytes, lost) for one in samples
    ]
    seen = [(one.row.memory or math.nan) * 2**30 for one in samples]
    out: Columns = np.log(np.array(predicted) / np.array(seen))
    return out


def fit_margin(samples: Sequence[Sample], known: Constants) -> Constants:
    """Return the constants with the memory that is lost beside tensors, from published peaks."""
    seen = [one for one in samples if one.row.memory]

    def lost(x: Columns) -> Margin:
        context, fragments, old = np.abs(x).tolist()
        return Margin(context=context * 1e9, fragments=fragments, old=old)

    def errors(x: Columns) -> Columns:
        doubt = (x - _MARGIN) / _MARGIN_DOUBT
        return np.concatenate([_bent(memory_errors(seen, lost(x)) / _CORNER), doubt])

    found = lost(least_squares(errors, np.array(_MARGIN)).x)
    return known.model_copy(update={
        "context": found.context, "fragments": found.fragments, "old_copies": found.old,
    })  # fmt: skip


Pair = tuple[int, int]
"""Places of two samples: with a technique, and without it on the same device."""


def ratios(samples: Sequence[Sample]) -> list[Pair]:
    """Return the pairs among samples."""
    places = {one.row.id: place for place, one in enumerate(samples)}
    rows = [one.row for one in samples]
    return [(places[one.id], places[other.id]) for one, other in pairs(rows)]


def _alike(row: Row, other: Row, *names: str) -> bool:
    """Tell whether rows step alike, and in what else is named: their ratio is about the rest."""
    return all(
        getattr(row, name) == getattr(other, name) for name in ("steps", "forwards", *names)
    )


def fit_units(prices: Prices, found: Sequence[Pair], known: Constants) -> Constants:
    """Return the constants with those of the second stage, from pairs with a narrow type."""
    samples = prices.samples
    narrow = [
        (one, other) for one, other in found
        if samples[one].row.cache == samples[other].row.cache == "none"
        and _alike(samples[one].row, samples[other].row, "kernel")
        and any(op.dtype.startswith(UNITS) for p in samples[one].work.phases for op in p.operations)
    ]  # fmt: skip
    if not narrow:
        return known
    one, other = (np.array(side) for side in zip(*narrow, strict=True))
    seen = prices.seen[one] - prices.seen[other]
    # The share of the best float8 product is first taken to be that of 16 bits.
    centre = np.log([known.linear, *(getattr(Constants(), name) for name in UNITS[1:])])

    def constants(x: Columns) -> Constants:
        return known.model_copy(update=dict(zip(UNITS, np.exp(x).tolist(), strict=True)))

    def errors(x: Columns) -> Columns:
        logs = prices.logs(constants(x))
        wrong = logs[one] - logs[other] - seen
        return np.concatenate([_bent(wrong / _CORNER), (x - centre) / _DOUBT])

    return constants(least_squares(errors, centre).x)


def fit_anchors(prices: Prices, found: Sequence[Pair], known: Constants) -> Constants:
    """Return the constants with what caches left to compute in pairs of rows."""
    priced = prices.parts(known)
    inside = priced.by_phase["denoise"] / priced.total
    seen = []
    for one, other in found:
        row, without = prices.samples[one].row, prices.samples[other].row
        taught = row.cache != "none" and without.cache == "none"
        if taught and _alike(row, without, "precision"):
            ratio = float(np.exp(prices.seen[one] - prices.seen[other]))
            seen.append((row.cache, row.frames > 1, 1 - (1 - ratio) / float(inside[other])))
    return known.model_copy(update={"caches": learn(seen)})


def techniques(prices: Prices, found: Sequence[Pair], known: Constants) -> Constants:
    """Return the constants with what pairs teach: narrow units, then anchors of caches."""
    return fit_anchors(prices, found, fit_units(prices, found, known))
