"""How much a comparison measures, and how long that takes."""

from __future__ import annotations

from collections.abc import Sequence

from planner.case.noun import Noun
from planner.tuning.bench.knobs import grid
from planner.tuning.bench.method import Method

LEVELS = (0.05, 0.10)
POINTS = 20
PROMPTS = 2
LEARNING_PROMPTS = 2
REFINED = 3
REFINED_PROMPTS = 4
REFINED_METHODS = 3
FINALISTS = 2
ATTEMPTS = 3
CERTIFIED = 32
EARLY = 10
ROUNDS = 12
HEAT_ROUNDS = 3
EVERY = 5.0
BUSY = 1.5

BUDGET_SECONDS = 120 * 60.0
"""What a whole comparison should take at most."""

_GRID_SHARE, _LEVEL_SHARE = 0.5, 0.35
"""What a call takes of an untouched one: over a whole grid, and near a level."""

_DRAWN, _ATTEMPTS = 0.75, 1.6
"""Share of the grid's calls that are made, and settings that a finalist takes."""


class Scale(Noun):
    """How much is measured; the same for every method, whoever wrote it.

    `points` settings a method on the grid, each on `prompts` prompts; `learning` other prompts
    that calibrations learn from; at each of the `levels` of mean LPIPS the best
    `refined_methods` of each side are tried at `refined` more settings on `refined_prompts`
    prompts, and the best `finalists` of each side go to `certified` unseen prompts, with at most
    `attempts` settings each; a mean over the level after `early` prompts ends an attempt.
    `rounds` decide between the best of both sides. An untouched call comes after others that
    took as long as `every` of them; calls of an earlier run beside one that took `busy` times the
    median are made again, since the machine had other work.
    """

    levels: tuple[float, ...] = LEVELS
    points: int = POINTS
    prompts: int = PROMPTS
    learning: int = LEARNING_PROMPTS
    refined: int = REFINED
    refined_prompts: int = REFINED_PROMPTS
    refined_methods: int = REFINED_METHODS
    finalists: int = FINALISTS
    attempts: int = ATTEMPTS
    certified: int = CERTIFIED
    early: int = EARLY
    rounds: int = ROUNDS
    every: float = EVERY
    busy: float = BUSY

    @property
    def searched(self) -> int:
        """Return how many prompts the search sees, those that calibrations learn from included."""
        return max(self.prompts, self.refined_prompts) + self.learning


def estimate(scale: Scale, methods: Sequence[Method], seconds: float) -> dict[str, float]:
    """Return the seconds of every phase, where an untouched call takes `seconds`."""
    beside = 1 + 1 / scale.every  # the untouched calls between
    sides = [sum(one.side == side for one in methods) for side in ("ours", "peer", "steps")]
    refined = sum(min(count, scale.refined_methods) for count in sides)
    finalists = sum(min(count, scale.finalists) for count in sides)
    settings = sum(1 + len(grid(one.domain, scale.points)) for one in methods)
    learn = sum(one.learn is not None for one in methods)
    levels, near = len(scale.levels), _LEVEL_SHARE * beside
    calls = {
        "references": float(scale.refined_prompts + scale.certified),
        "calibrations": learn * (scale.learning + 1.0),
        "portraits": 2.0 * len(methods) * _GRID_SHARE,
        "grid": settings * scale.prompts * _DRAWN * _GRID_SHARE * beside,
        "refinement": levels * refined * (scale.refined + 1) * scale.refined_prompts * near,
        "heats": 2 * levels * HEAT_ROUNDS * (1 + refined * near),
        "certificates": levels * finalists * _ATTEMPTS * scale.certified * near,
        "rounds": levels * scale.rounds * (1 + 2 * _LEVEL_SHARE),
    }
    return {name: round(count * seconds, 1) for name, count in calls.items()}
