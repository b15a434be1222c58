"""Plays the recorded settings again: a look at a committed comparison in a few minutes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from planner.case.prompts import Prompt
from planner.errors import Interrupted, UsageError
from planner.tuning.bench.caching import methods_for
from planner.tuning.bench.conclude import against
from planner.tuning.bench.document import Comparison, Entry, Figure, Level, digits, middle
from planner.tuning.bench.method import Method, Side
from planner.tuning.bench.planned import replayed
from planner.tuning.bench.rig import Rig
from planner.tuning.session import Progress

PROMPTS = 12
"""Rounds of a replay, each on a prompt of its own."""


class Player(NamedTuple):
    """A recorded entry, and the method that puts it on."""

    entry: Entry
    method: Method


class Call(NamedTuple):
    """One finished call."""

    seconds: float
    lpips: float


class Round(NamedTuple):
    """The calls on one prompt: the untouched one's seconds, the others by setting."""

    untouched: float
    calls: dict[str, Call]


def replay(recorded: Comparison, progress: Progress, rounds: int = PROMPTS) -> Comparison:
    """Time our best and the peers' best of every level in interleaved rounds; certifies nothing.

    The best that can be put on here is taken: a library may be missing. Raises `UsageError`
    where nothing was recorded, `Interrupted` where the user stops it.
    """
    if not any(level.standings for level in recorded.levels):
        way_out = "run planner bench caching without --quick"
        raise UsageError("the recorded comparison has no setting to play again", way_out=way_out)
    progress.say("playing recorded settings again; nothing is certified by this")
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="planner-") as folder:
            return _replay(recorded, Path(folder), progress, rounds, began)
    except KeyboardInterrupt as error:
        way_out = "run it again: a replay keeps nothing"
        raise Interrupted("stopped while playing recorded settings", way_out=way_out) from error


def _replay(
    recorded: Comparison, folder: Path, progress: Progress, rounds: int, began: float
) -> Comparison:
    rig = Rig(recorded.source, recorded.workload, folder)
    methods, peers = methods_for(rig, (), progress)
    by_name = {method.name: method for method in methods}
    players = {level.lpips: _players(level, by_name, progress) for level in recorded.levels}
    different = {one.entry.setting: one for pair in players.values() for one in pair.values()}
    prompts = recorded.prompts[:rounds]
    rig.untouched(prompts[0])
    played: list[Round] = []
    for number, prompt in enumerate(prompts):
        progress.tick("rounds", number, len(prompts), "")
        order = list(different.values())[:: -1 if number % 2 else 1]
        played.append(_round(rig, prompt, order))
    untouched = [one.untouched for one in played]
    levels = tuple(_level(level, players[level.lpips], played) for level in recorded.levels)
    return recorded.model_copy(update={
        "quick": True, "certified": False, "device": rig.case.device, "peers": peers,
        "untouched": middle(untouched, "s"), "minutes": round((time.monotonic() - began) / 60, 1),
        "levels": levels, "methods": (), "equal": (), "prompts": prompts,
    })  # fmt: skip


def _round(rig: Rig, prompt: Prompt, players: Sequence[Player]) -> Round:
    """Make the untouched call and every player's on one prompt."""
    untouched, pixels = rig.untouched(prompt)
    rig.keep_reference(prompt, pixels)
    calls = {}
    for entry, method in players:
        with method.on(rig, entry.recipe.get("value"), entry.recipe["learned"]) as arguments:
            seconds, pixels = rig.call(prompt, arguments)
        calls[entry.setting] = Call(seconds, rig.distance(pixels, prompt))
    return Round(untouched, calls)


def _players(
    level: Level, methods: Mapping[str, Method], progress: Progress
) -> dict[Side, Player]:
    """Return the best recorded setting of each side that can be put on here."""
    found: dict[Side, Player] = {}
    for entry in level.standings:
        if entry.side == "steps" or entry.side in found:
            continue
        if entry.side == "ours":
            found["ours"] = Player(entry, replayed(entry.method, "ours", entry.recipe))
        elif entry.method in methods:
            found["peer"] = Player(entry, methods[entry.method])
        else:
            progress.say(f"{entry.setting} is passed over: its library is not installed")
    return found


def _level(recorded: Level, players: Mapping[Side, Player], played: Sequence[Round]) -> Level:
    calls = {side: [one.calls[player.entry.setting] for one in played]
             for side, player in players.items()}  # fmt: skip
    entries = {side: _entry(player.entry, calls[side], played) for side, player in players.items()}
    both = [[call.seconds for call in calls.get(side, ())] for side in ("ours", "peer")]
    ratio, bounds, count = against(*both) if all(both) else (None, None, 0)
    return Level(lpips=recorded.lpips, ours=entries.get("ours"), peer=entries.get("peer"),
                 ratio=ratio, ratio_interval=bounds, rounds=count)  # fmt: skip


def _entry(entry: Entry, calls: Sequence[Call], played: Sequence[Round]) -> Entry:
    shares = [call.seconds / one.untouched for call, one in zip(calls, played, strict=True)]
    return entry.model_copy(update={
        "seconds": middle([call.seconds for call in calls], "s"),
        "share": middle(shares, "of an untouched call"),
        "lpips": Figure(value=digits(fmean(call.lpips for call in calls)), unit="LPIPS"),
    })  # fmt: skip
