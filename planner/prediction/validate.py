"""Holds predictions against published measurements: row by row, then in three groups."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from planner.prediction.fitting import Prices, gather, memory_errors, plain, ratios, trusted
from planner.prediction.left_out import summary
from planner.prediction.published import Row, pairs
from planner.prediction.replay import Sample, is_known
from planner.prediction.speeds import Constants, margin


class Judged(NamedTuple):
    """One prediction beside what was published: seconds, a ratio of seconds, or bytes.

    `error` is predicted over published, minus one.
    """

    group: str
    id: str
    model: str
    device: str
    predicted: float
    published: float

    @property
    def error(self) -> float:
        """Return how far the prediction is off, as a share of what was published."""
        return self.predicted / self.published - 1


class Verdict(NamedTuple):
    """All judged rows, the summary of each group, and why the other rows were left out."""

    rows: list[Judged]
    groups: dict[str, dict[str, float | int]]
    skipped: dict[str, int]
    coverage: dict[str, float]


def validate(rows: Sequence[Row], known: Constants) -> Verdict:
    """Predict every row that can be replayed. Rows of confidence C are left out, and counted."""
    kept = [row for row in rows if trusted(row)]
    samples, skipped = gather(kept)
    if len(kept) < len(rows):
        skipped["confidence C"] = len(rows) - len(kept)
    found = [*_timed(samples, known), *_memory(samples, known)]
    judged = [one for one in found if math.isfinite(one.predicted)]
    if len(judged) < len(found):
        skipped["cache without an anchor"] = len(found) - len(judged)
    groups = {
        name: summary(np.log1p([one.error for one in judged if one.group == name]))
        for name in ("baselines", "ratios", "memory")
    }
    done = {(one.group, one.id) for one in judged}
    return Verdict(judged, groups, dict(skipped), _coverage(kept, done))


def _timed(samples: Sequence[Sample], known: Constants) -> list[Judged]:
    """Judge seconds of baselines, and ratios of pairs; every row is priced once."""
    mine = [one for one in samples if one.row.seconds]
    if not mine:
        return []
    values = np.exp(Prices(mine).logs(known)).tolist()
    seen = [one.row.seconds or 0.0 for one in mine]
    return [
        *(_judged("baselines", one, values[place], seen[place])
          for place, one in enumerate(mine) if plain(one.row)),
        *(_judged("ratios", mine[one], values[one] / values[other], seen[one] / seen[other])
          for one, other in ratios(mine)),
    ]  # fmt: skip


def _memory(samples: Sequence[Sample], known: Constants) -> list[Judged]:
    mine = [one for one in samples if one.row.memory]
    errors = memory_errors(mine, margin(known, "old"))
    bytes_seen = [(one.row.memory or 0.0) * 2**30 for one in mine]
    return [
        _judged("memory", one, float(np.exp(wrong)) * seen, seen)
        for one, wrong, seen in zip(mine, errors, bytes_seen, strict=True)
    ]  # fmt: skip


def _judged(group: str, one: Sample, predicted: float, published: float) -> Judged:
    return Judged(group, one.row.id, one.row.model, one.card.id, predicted, published)


def _coverage(rows: Sequence[Row], done: set[tuple[str, str]]) -> dict[str, float]:
    """Return the share of the rows of known models and devices that is predicted, by group."""
    mine = [row for row in rows if is_known(row) and row.gpus == 1]
    groups = {
        "baselines": [row.id for row in mine if plain(row)],
        "ratios": [one.id for one, _ in pairs(mine)],
        "memory": [row.id for row in mine if row.memory],
    }
    return {
        name: sum((name, one) in done for one in ids) / max(1, len(ids))
        for name, ids in groups.items()
    }


def reasons(skipped: dict[str, int]) -> list[str]:
    """Return the reasons in sentences, the commonest first."""
    return [f"{count} rows: {name}" for name, count in Counter(skipped).most_common()]
