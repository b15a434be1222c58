"""How far the roofline is off on what its fit has not seen: whole groups are left out in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.prediction.fitting import (
    Prices,
    fit,
    fit_margin,
    memory_errors,
    ratios,
    techniques,
)
from planner.prediction.replay import Sample
from planner.prediction.roofline import Columns
from planner.prediction.speeds import Constants, margin

FOLDS = 12


GROUPS: dict[str, Callable[[Sample], Any]] = {
    "pairs": lambda one: (one.row.model, one.card.id),
    "devices": lambda one: one.card.id,
    "architectures": lambda one: one.card.architecture,
    "sources": lambda one: one.row.source.split(" ")[0],
}
"""What is left out in turn."""


FOOTINGS = {"this device": "pairs", "its family": "devices", "datasheet": "architectures"}
"""Which errors tell the interval of a prediction, by what it rests on."""


def left_out(prices: Prices, key: Callable[[Sample], Any]) -> Columns:
    """Return each sample's log error when its whole group was left out of the fit."""
    folds = _folds([str(key(one)) for one in prices.samples])
    out = np.full(len(folds), np.nan)
    whole = fit(prices)  # only where the others begin, which saves most of their steps
    for fold in sorted(set(folds.tolist())):
        known = fit(prices, folds != fold, whole)
        mine = folds == fold
        out[mine] = (prices.logs(known) - prices.seen)[mine]
    return out


def left_out_ratios(prices: Prices, known: Constants, key: Callable[[Sample], Any]) -> Columns:
    """Return the log error of each ratio when its group taught neither units nor anchors."""
    found = ratios(prices.samples)
    folds = _folds([str(key(prices.samples[one])) for one, _ in found])
    one, other = (np.array(side) for side in zip(*found, strict=True))
    seen = prices.seen[one] - prices.seen[other]
    out = np.full(len(found), np.nan)
    for fold in sorted(set(folds.tolist())):
        mine = folds == fold
        kept = [pair for pair, away in zip(found, mine, strict=True) if not away]
        logs = prices.logs(techniques(prices, kept, known))
        out[mine] = (logs[one] - logs[other] - seen)[mine]
    return out


def left_out_memory(
    samples: Sequence[Sample], known: Constants, key: Callable[[Sample], Any]
) -> Columns:
    """Return the log error of each printed peak when its group did not teach what memory loses."""
    seen = [one for one in samples if one.row.memory]
    folds = _folds([str(key(one)) for one in seen])
    out = np.full(len(folds), np.nan)
    for fold in sorted(set(folds.tolist())):
        taught = [one for one, its in zip(seen, folds.tolist(), strict=True) if its != fold]
        mine = [one for one, its in zip(seen, folds.tolist(), strict=True) if its == fold]
        out[folds == fold] = memory_errors(mine, margin(fit_margin(taught, known), "old"))
    return out


def _folds(groups: Sequence[str]) -> NDArray[np.int64]:
    """Deal whole groups into folds, always in the same way."""
    names = sorted(set(groups))
    order = np.random.default_rng(0).permutation(len(names)) % FOLDS
    fold_of = dict(zip(names, order.tolist(), strict=True))
    return np.array([fold_of[name] for name in groups])


def spread(errors: Columns) -> float:
    """Return the factor within which four of five predictions lie."""
    return float(np.exp(np.quantile(np.abs(errors[np.isfinite(errors)]), 0.8)))


def summary(errors: Columns) -> dict[str, float | int]:
    """Return how many errors there are, and the median and mean of their absolute sizes."""
    sizes = np.abs(np.expm1(errors[np.isfinite(errors)]))
    if not len(sizes):
        return {"n": 0, "median_ape": float("nan"), "mean_ape": float("nan")}
    return {"n": len(sizes), "median_ape": float(np.median(sizes)),
            "mean_ape": float(sizes.mean())}  # fmt: skip
