"""Times the fastest settings side by side: their distances stand, one reading of seconds does not.

A grid takes an hour, in which the machine may be slower for minutes. Whose settings go on is
therefore not decided by the seconds that the grid saw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.case.noun import Scalar
from planner.tuning.bench.choose import AIM
from planner.tuning.bench.desk import Desk
from planner.tuning.bench.journal import HEAT, Journal
from planner.tuning.bench.method import Method
from planner.tuning.bench.scale import HEAT_ROUNDS

NEAR = 1.4
"""How many times the share of its side's fastest setting one may take, to be timed again."""

_SETTINGS = 2
"""Settings of a method that are timed again."""


def time_again(desk: Desk, methods: Sequence[Method], level: float, heat: str) -> None:
    """Time every side's fastest settings within a level in rounds with the untouched call."""
    by_name = {method.name: method for method in methods}
    chosen = desk.journal.chosen(heat, level, lambda: [
        (method.name, value) for method, value in _players(desk.journal, methods, AIM * level)
    ])  # fmt: skip
    players = [(by_name[name], value) for name, value in chosen if name in by_name]
    for number, prompt in enumerate(desk.search[:HEAT_ROUNDS]):
        desk.progress.tick(f"heats at {level:g}", number, HEAT_ROUNDS, "")
        lacking = [(method, value) for method, value in players
                   if desk.journal.find(HEAT, method.name, value, prompt.id) is None]  # fmt: skip
        if lacking:
            desk.untouched(prompt, HEAT)
        for method, value in lacking[:: -1 if number % 2 else 1]:
            desk.once(HEAT, method, value, prompt)
    desk.close_bracket()


def _players(
    journal: Journal, methods: Sequence[Method], level: float
) -> Iterator[tuple[Method, Scalar]]:
    """Give the fastest settings within a level of the methods that may be their side's best."""
    for side in dict.fromkeys(method.side for method in methods):
        mine = {method.name: method for method in methods if method.side == side}
        points = {name: sorted((one for one in journal.points(name) if one.lpips <= level),
                               key=lambda one: one.share)[:_SETTINGS] for name in mine}  # fmt: skip
        best = min((one.share for found in points.values() for one in found), default=0.0)
        yield from ((mine[name], one.value) for name, found in points.items() for one in found
                    if one.share <= NEAR * best)  # fmt: skip
