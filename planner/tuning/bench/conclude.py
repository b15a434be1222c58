"""From a journal to the document: who is fastest within each level, and by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from planner.case.noun import Scalar
from planner.tuning.bench.choose import Point
from planner.tuning.bench.desk import Desk
from planner.tuning.bench.document import (
    Comparison,
    Entry,
    Figure,
    Level,
    Row,
    Watched,
    digits,
    interval,
    middle,
)
from planner.tuning.bench.equal import equal_rows
from planner.tuning.bench.journal import CERTIFY, UNTOUCHED, Journal, Shot
from planner.tuning.bench.knobs import place
from planner.tuning.bench.method import Method
from planner.tuning.bench.scale import Scale
from planner.tuning.bench.stages import SIDES, Verdict, rounds_at, standing


def conclude(
    desk: Desk, methods: Sequence[Method], peers: Mapping[str, str | None]
) -> Comparison:
    """Return what the journal holds as one document."""
    rig, journal = desk.rig, desk.journal
    levels = tuple(_level(journal, methods, desk.scale, level) for level in desk.scale.levels)
    return Comparison(
        certified=any(one.ratio is not None for one in levels), source=rig.source,
        workload=rig.case.workload, device=rig.case.device, peers=dict(peers), scale=desk.scale,
        prompts=desk.unseen, untouched=middle(journal.untouched_seconds(), "s"),
        minutes=round(journal.seconds / 60, 1), levels=levels,
        methods=tuple(_row(journal, method, max(desk.scale.levels)) for method in methods),
        equal=tuple(equal_rows(desk, methods)),
    )  # fmt: skip


def _level(
    journal: Journal, methods: Sequence[Method], scale: Scale, level: float
) -> Level:
    by_name = {method.name: method for method in methods}
    held = [one for side in SIDES for one in standing(journal, scale, level, side)
            if one.method in by_name]  # fmt: skip
    entries = [_entry(journal, by_name[one.method], one) for one in held]
    ours, peer = (next((e for e in entries if e.side == side), None) for side in ("ours", "peer"))
    seconds = _rounds(journal, level, [one for one in (ours, peer) if one is not None], held)
    if len(seconds) == 2 and ours is not None and peer is not None:
        ours = ours.model_copy(update={"seconds": middle(seconds[0], "s")})
        peer = peer.model_copy(update={"seconds": middle(seconds[1], "s")})
    ratio, bounds, count = against(*seconds) if len(seconds) == 2 else (None, None, 0)
    return Level(lpips=level, ours=ours, peer=peer, ratio=ratio, ratio_interval=bounds,
                 rounds=count, standings=tuple(entries))  # fmt: skip


def against(
    ours: Sequence[float], peer: Sequence[float]
) -> tuple[float | None, tuple[float, float] | None, int]:
    """Return how many times as fast ours is: median over rounds, interval of 95 %, their number."""
    ratios = [other / one for one, other in zip(ours, peer, strict=True)]
    if not ratios:
        return None, None, 0
    low, high = interval(ratios)
    bounds = None if low is None or high is None else (low, high)
    return middle(ratios, "ratio").value, bounds, len(ratios)


def _rounds(
    journal: Journal, level: float, players: Sequence[Entry], held: Sequence[Verdict]
) -> list[list[float]]:
    """Return the seconds of both players in the rounds that stand whole."""
    if len(players) < 2:
        return []
    values = {one.method: one.value for one in reversed(held)}
    purpose = rounds_at(level)
    sides = [{s.prompt: s for s in journal.shots(purpose, one.method, values[one.method])}
             for one in players]  # fmt: skip
    sides.append({s.prompt: s for s in journal.shots(purpose, UNTOUCHED, None)})
    whole = [prompt for prompt in sides[2] if _same_run(sides, prompt)]
    return [[side[prompt].seconds for prompt in whole] for side in sides[:2]]


def _same_run(sides: Sequence[Mapping[str, Shot]], prompt: str) -> bool:
    runs = {side[prompt].run if prompt in side else None for side in sides}
    return len(runs) == 1 and None not in runs


def _entry(journal: Journal, method: Method, found: Verdict) -> Entry:
    shots = journal.shots(CERTIFY, method.name, found.value)
    learned = journal.learned(method.lesson) or {}
    return Entry(
        method=method.name, side=method.side, setting=method.setting(found.value),
        recipe=method.recipe(found.value, learned), share=middle(
            [journal.share(shot) for shot in shots], "of an untouched call"),
        lpips=Figure(value=digits(found.lpips), unit="LPIPS",
                     upper=None if found.upper is None else digits(found.upper)),
    )  # fmt: skip


def _row(journal: Journal, method: Method, level: float) -> Row:
    points = sorted(journal.points(method.name), key=lambda one: place(method.domain, one.value))
    rounded = [one.model_copy(update={"lpips": digits(one.lpips), "share": digits(one.share)})
               for one in points]  # fmt: skip
    return Row(
        method=method.name, side=method.side, source=method.source, knob=method.knob,
        note=method.note, left_out=journal.failure(method.name, whole=True), curve=tuple(rounded),
        default=next((one for one in rounded if one.value == method.default), None),
        at_default=_watched(journal, method, method.default),
        comparable=_watched(journal, method, _best_value(points, level)),
    )  # fmt: skip


def _best_value(points: Sequence[Point], level: float) -> Any:
    within = [one for one in points if one.lpips <= level]
    return min(within, key=lambda one: one.share).value if within else object()


def _watched(journal: Journal, method: Method, value: Scalar) -> Watched | None:
    known = journal.portrait(method.name, value)
    if known is None:
        return None
    seen, held = known
    return Watched(value=value, shares=seen.shares, computed=seen.computed,
                   held=Figure(value=held, unit="bytes"))  # fmt: skip
