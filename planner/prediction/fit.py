"""Fit the roofline's constants: `python -m planner.prediction.fit DATA.csv`.

DATA.csv is in the format of published.csv. The first stage takes 16-bit rows without techniques,
the second the ratios of quantized rows to theirs. What the file says of errors is cross-validated:
whole (model, device) pairs, whole devices and whole sources are left out in turn.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from planner.catalog.devices import cards
from planner.prediction.published import Row, pairs, read
from planner.prediction.replay import Sample, Skipped, sample
from planner.prediction.roofline import Columns, Table, price
from planner.prediction.speeds import FITTED, Constants, speeds

FREE = {
    "linear": 0.3, "convolution": 0.5, "flash2": 0.3, "hopper": 0.5, "flash3": 0.3, "sage": 0.5,
    "compiled": 0.2, "engine": 0.2, "old": 0.2, "bandwidth": 0.08, "cached": 0.3, "launch": 0.3,
    "launch_compiled": 0.3, "ramp": 0.3, "call": 0.7, "step": 0.7,
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

_CORNER = 0.1
"""Errors above this count linearly, not squared: tables have outliers."""

FOLDS = 12


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
        """Return the logarithm of each sample's predicted seconds."""
        each = np.stack([speeds(cards()[c], known, stack).row()  # type: ignore[arg-type]
                         for c, stack in self._pairs])[self._which]  # fmt: skip
        # Kernels that add up in float16 run at twice the rate of those that torch uses.
        each[self._halves, 2] *= 2
        out: Columns = np.log(price(self.table, each).total)
        return out


def fit(prices: Prices, use: NDArray[np.bool_] | None = None) -> Constants:
    """Return the constants of the first stage from the samples in use."""
    use = np.ones(len(prices.samples), bool) if use is None else use
    names = sorted({one.card.id for one, used in zip(prices.samples, use, strict=True) if used})
    prior = Constants()
    centre = np.log([getattr(prior, name) for name in FREE])

    def constants(x: Columns) -> Constants:
        values = np.exp(x)
        own = dict(zip(names, values[len(FREE) :].tolist(), strict=True))
        return prior.model_copy(
            update=dict(zip(FREE, values[: len(FREE)].tolist(), strict=True)) | {"devices": own}
        )

    def errors(x: Columns) -> Columns:
        wrong = (prices.logs(constants(x)) - prices.seen)[use]
        doubt = (x[: len(FREE)] - centre) / np.array(list(FREE.values()))
        spread = x[len(FREE) :] / _SPREAD
        return np.concatenate([_bent(wrong / _CORNER), doubt, spread])

    start = np.concatenate([centre, np.zeros(len(names))])
    return constants(least_squares(errors, start, x_scale="jac", max_nfev=40).x)


def _bent(errors: Columns) -> Columns:
    """Return errors whose squares grow linearly beyond one (soft L1)."""
    out: Columns = np.sign(errors) * np.sqrt(2 * (np.sqrt(1 + errors**2) - 1))
    return out


def left_out(prices: Prices, key: Callable[[Sample], Any]) -> Columns:
    """Return each sample's log error when its whole group was left out of the fit."""
    names = sorted({str(key(one)) for one in prices.samples})
    order = np.random.default_rng(0).permutation(len(names))
    fold_of = dict(zip(names, (order % FOLDS).tolist(), strict=True))
    folds = np.array([fold_of[str(key(one))] for one in prices.samples])
    out = np.full(len(folds), np.nan)
    for fold in sorted(set(folds.tolist())):
        known = fit(prices, folds != fold)
        mine = folds == fold
        out[mine] = (prices.logs(known) - prices.seen)[mine]
    return out


GROUPS: dict[str, Callable[[Sample], Any]] = {
    "pairs": lambda one: (one.row.model, one.card.id),
    "devices": lambda one: one.card.id,
    "sources": lambda one: one.row.source.split(" ")[0],
}
"""What is left out in turn."""


def summary(errors: Columns) -> dict[str, float | int]:
    """Return how many errors there are, and the median and mean of their absolute sizes."""
    sizes = np.abs(np.expm1(errors[np.isfinite(errors)]))
    if not len(sizes):
        return {"n": 0, "median_ape": float("nan"), "mean_ape": float("nan")}
    return {"n": len(sizes), "median_ape": float(np.median(sizes)),
            "mean_ape": float(sizes.mean())}  # fmt: skip


def ratios(samples: Sequence[Sample]) -> list[tuple[int, int]]:
    """Return (with, without) a technique as places among the samples."""
    places = {one.row.id: place for place, one in enumerate(samples)}
    rows = [one.row for one in samples]
    return [(places[one.id], places[other.id]) for one, other in pairs(rows)]


def fit_units(samples: Sequence[Sample], known: Constants) -> Constants:
    """Return the constants with those of the second stage, from ratios on the same device."""
    found = [(one, other) for one, other in ratios(samples)
             if any(op.dtype.startswith(UNITS) for p in samples[one].work.phases
                    for op in p.operations)]  # fmt: skip
    if not found:
        return known
    prices = Prices(samples)
    one, other = (np.array(side) for side in zip(*found, strict=True))
    seen = prices.seen[one] - prices.seen[other]
    centre = np.log([getattr(known, name) for name in UNITS])

    def constants(x: Columns) -> Constants:
        return known.model_copy(update=dict(zip(UNITS, np.exp(x).tolist(), strict=True)))

    def errors(x: Columns) -> Columns:
        logs = prices.logs(constants(x))
        wrong = logs[one] - logs[other] - seen
        return np.concatenate([_bent(wrong / _CORNER), (x - centre) / _DOUBT])

    return constants(least_squares(errors, centre).x)


def main() -> None:
    """Read the command line, fit, cross-validate and write the constants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=FITTED)
    args = parser.parse_args()
    rows, _ = read(args.data)
    samples, skipped = gather([row for row in rows if trusted(row)])
    timed = [one for one in samples if one.row.seconds]
    prices = Prices([one for one in timed if plain(one.row)])
    known = fit_units(timed, fit(prices))
    inside = summary(prices.logs(known) - prices.seen)
    outside = {name: summary(left_out(prices, key)) for name, key in GROUPS.items()}
    report = {
        "data": {"name": args.data.name, "rows": len(rows),
                 "sha256": hashlib.sha256(args.data.read_bytes()).hexdigest()},
        "fit": inside, "left_out": outside, "skipped": dict(skipped),
    }  # fmt: skip
    written = {"constants": known.model_dump(), **report}
    args.out.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
