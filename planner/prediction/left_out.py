"""How far the roofline is off on what its fit has not seen: whole groups are left out in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.prediction.fitting import Prices, fit, fit_anchors, fit_units, ratios
from planner.prediction.replay import Sample
from planner.prediction.roofline import Columns
from planner.prediction.speeds import Constants

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
    for fold in sorted(set(folds.tolist())):
        known = fit(prices, folds != fold)
        mine = folds == fold
        out[mine] = (prices.logs(known) - prices.seen)[mine]
    return out


def left_out_ratios(
    samples: Sequence[Sample], known: Constants, key: Callable[[Sample], Any]
) -> Columns:
    """Return the log error of each ratio when its group taught neither units nor anchors."""
    timed = [one for one in samples if one.row.seconds]
    places = ratios(timed)
    folds = _folds([str(key(timed[one])) for one, _ in places])
    prices = Prices(timed)
    out = np.full(len(places), np.nan)
    for fold in sorted(set(folds.tolist())):
        away = {timed[places[at][0]].row.id for at in np.flatnonzero(folds == fold)}
        kept = [one for one in timed if one.row.id not in away]
        logs = prices.logs(fit_anchors(kept, fit_units(kept, known)))
        for at in np.flatnonzero(folds == fold):
            one, other = places[at]
            out[at] = logs[one] - logs[other] - prices.seen[one] + prices.seen[other]
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
