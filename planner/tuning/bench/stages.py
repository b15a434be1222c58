"""The comparison, stage after stage: defaults, grid, heats, refinement, certificates, rounds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

from planner.case.noun import Noun, Scalar
from planner.case.prompts import Prompt
from planner.measure.statistics import mean_upper
from planner.tuning.bench.choose import AIM, Point, Tried, fastest, following, refine
from planner.tuning.bench.desk import Desk
from planner.tuning.bench.equal import measure_equal
from planner.tuning.bench.heats import time_again
from planner.tuning.bench.journal import CERTIFY, UNTOUCHED, Journal, Shot
from planner.tuning.bench.knobs import grid
from planner.tuning.bench.method import Method, Side
from planner.tuning.bench.scale import Scale
from planner.tuning.bench.watch import Portrait

CONFIDENCE = 0.95
SIDES: tuple[Side, ...] = ("ours", "peer", "steps")
_FAR = 2.0
"""Times the loosest level at which one prompt is enough to give a setting up."""

_SLOW = 0.5
"""Share of an untouched call above which one prompt is enough: others are twice as fast."""

_ABOVE = 1.3
"""How far a bound lies above the mean, where too few prompts were rendered for one."""

INERT = "computes as much as the untouched pipeline, at both ends of its knob too"


class Verdict(Noun):
    """One setting on unseen prompts: mean LPIPS with its upper bound, and whether that holds.

    `share` is the median share of an untouched call's seconds; `n` prompts were rendered.
    """

    level: float
    method: str
    side: Side
    value: Scalar
    lpips: float
    upper: float | None
    share: float
    n: int
    holds: bool


def run(desk: Desk, methods: Sequence[Method]) -> None:
    """Take every stage in turn; what the journal holds already is not measured again."""
    able = try_defaults(desk, methods)
    measure_grid(desk, able)
    for level in desk.scale.levels:
        time_again(desk, able, level, "first heat")
        refine_best(desk, able, level)
        time_again(desk, able, level, "second heat")
    for level in desk.scale.levels:
        certify_best(desk, able, level)
    for level in desk.scale.levels:
        play_rounds(desk, able, level)
    for method in able:
        watch_comparable(desk, method)
    measure_equal(desk, able)


def try_defaults(desk: Desk, methods: Sequence[Method]) -> list[Method]:
    """Measure and watch every default; returns the methods that work and skip something."""
    able = []
    for done, method in enumerate(methods):
        desk.progress.tick("defaults", done, len(methods), method.name)
        if desk.journal.failure(method.name, whole=True):
            continue
        point = desk.point(method, method.default, desk.search[: desk.scale.prompts])
        seen = None if point is None else desk.portrait(method, method.default)
        if seen is None:
            reason = desk.journal.failure(method.name, method.default) or "no picture"
            desk.journal.fail(method.name, None, reason, whole=True)
        elif _all_computed(desk, seen) and _inert(desk, method):
            desk.journal.fail(method.name, None, INERT, whole=True)
        else:
            able.append(method)
    desk.close_bracket()
    return able


def _inert(desk: Desk, method: Method) -> bool:
    ends = grid(method.domain, 2)
    seen = [desk.portrait(method, value) for value in ends]
    return all(one is None or _all_computed(desk, one) for one in seen)


def _all_computed(desk: Desk, seen: Portrait) -> bool:
    forwards = desk.rig.case.workload.steps * len(seen.shares)
    return sum(seen.computed.values()) > 0.999 * forwards


def measure_grid(desk: Desk, methods: Sequence[Method]) -> None:
    """Measure every method's grid from its fast end, a setting of each in turn: load spares none.

    A setting that its first prompt shows to be far off, or slow, gets no other prompts.
    """
    prompts, far = desk.search[: desk.scale.prompts], _FAR * max(desk.scale.levels)
    grids = [(method, _from_fast(desk, method, prompts[:1])) for method in methods]
    for place in range(desk.scale.points):
        desk.progress.tick("grid", place, desk.scale.points, "")
        for method, value in ((one, values[place]) for one, values in grids if place < len(values)):
            first = desk.point(method, value, prompts[:1])
            if first is not None and first.share <= _SLOW and first.lpips <= far:
                desk.point(method, value, prompts)
    desk.close_bracket()


def _from_fast(desk: Desk, method: Method, prompt: Sequence[Prompt]) -> list[Scalar]:
    """Return a method's grid with its faster end first."""
    values = grid(method.domain, desk.scale.points)
    ends = [desk.point(method, value, prompt) for value in (values[0], values[-1])]
    shares = [float("inf") if end is None else end.share for end in ends]
    return values if shares[0] <= shares[1] else values[::-1]


def refine_best(desk: Desk, methods: Sequence[Method], level: float) -> None:
    """Bisect the knobs of each side's best methods a little below a level, on more prompts."""
    prompts = desk.search[: desk.scale.refined_prompts]
    chosen = _fixed(desk, methods, level, "to refine", desk.scale.refined_methods)
    for done, method in enumerate(chosen):
        desk.progress.tick(f"refining at {level:g}", done, len(chosen), method.name)
        ended = {"refined": method.name, "level": level}
        if ended in desk.journal.bodies("end"):
            continue

        def measure(value: Scalar, method: Method = method) -> Point | None:
            return desk.point(method, value, prompts)

        known = desk.journal.points(method.name)
        refine(method.domain, known, AIM * level, measure, desk.scale.refined)
        desk.journal.note("end", ended)
    desk.close_bracket()


def _fixed(
    desk: Desk, methods: Sequence[Method], level: float, stage: str, count: int
) -> list[Method]:
    """Return the best methods of each side for a stage, as first chosen."""
    names = desk.journal.chosen(stage, level, lambda: [
        one.name for one in best(desk.journal, methods, AIM * level, count)
    ])  # fmt: skip
    return [one for name in names for one in methods if one.name == name]


def best(
    journal: Journal, methods: Sequence[Method], level: float, count: int
) -> list[Method]:
    """Return the methods of each side that are fastest within a level, at most `count` a side."""
    found = []
    for side in SIDES:
        mine = [(point.share, method) for method in methods if method.side == side
                if (point := fastest(journal.points(method.name), level)) is not None]
        found += [method for _, method in sorted(mine, key=lambda pair: pair[0])[:count]]
    return found


def certify_best(desk: Desk, methods: Sequence[Method], level: float) -> None:
    """Certify each side's finalists on the unseen prompts.

    The finalists are written down before the first of these prompts is rendered with one of them.
    """
    chosen = _fixed(desk, methods, level, "to certify", desk.scale.finalists)
    for done, method in enumerate(chosen):
        desk.progress.tick(f"certifying at {level:g}", done, len(chosen), method.name)
        _certify(desk, method, level)
    desk.close_bracket()


def _certify(desk: Desk, method: Method, level: float) -> None:
    """Test settings of one method, bolder or milder ones by what the others showed."""
    points = desk.journal.points(method.name)
    tried = [Tried(point, one.upper) for one in certificates(desk.journal, desk.scale.certified)
             for point in points if (one.method, one.value) == (method.name, point.value)
             and one.upper is not None]  # fmt: skip
    point, most = fastest(points, AIM * level), len(tried) + desk.scale.attempts
    while point is not None and len(tried) < most:
        found = _test(desk, method, point.value, level)
        if found is None:
            return
        whole = found.n >= desk.scale.certified and found.upper is not None
        tried.append(Tried(point, (found.upper or 0.0) if whole else _ABOVE * found.lpips))
        point = following(points, tried, level)


def _test(desk: Desk, method: Method, value: Scalar, level: float) -> Verdict | None:
    """Render a setting's unseen prompts and write the verdict; few show a hopeless one."""
    for count in (desk.scale.early, desk.scale.certified):
        shots = desk.shots(CERTIFY, method, value, desk.unseen[:count])
        if not shots:
            return None
        desk.close_bracket()
        found = judged(desk.journal, method, shots, level, desk.scale.certified)
        if found.lpips > level:
            break
    desk.journal.note("verdict", found.model_dump(mode="json"))
    said = "holds" if found.holds else "does not hold"
    desk.progress.say(
        f"{method.setting(value)}: LPIPS {found.lpips:.4f} on {found.n} unseen prompts, "
        f"{level:g} {said}; {1 / found.share:.2f} times as fast"
    )
    return found


def judged(
    journal: Journal, method: Method, shots: Sequence[Shot], level: float, needed: int
) -> Verdict:
    """Return the verdict on some calls; it holds only where `needed` prompts were rendered."""
    values = [shot.lpips or 0.0 for shot in shots]
    upper = mean_upper(values, CONFIDENCE)
    return Verdict(
        level=level, method=method.name, side=method.side, value=shots[0].value,
        lpips=fmean(values), upper=upper if upper < 1e9 else None,
        share=median(map(journal.share, shots)), n=len(shots),
        holds=len(shots) >= needed and upper <= level,
    )  # fmt: skip


def certificates(journal: Journal, needed: int) -> list[Verdict]:
    """Return the latest verdict of every setting for which all `needed` prompts were rendered."""
    found = map(Verdict.model_validate, journal.bodies("verdict"))
    return list({(one.method, one.value): one for one in found if one.n >= needed}.values())


def standing(journal: Journal, scale: Scale, level: float, side: Side) -> list[Verdict]:
    """Return what holds at a level of one side: each method's fastest setting, best first.

    A setting that holds at a stricter level holds here too.
    """
    held = [one for one in certificates(journal, scale.certified)
            if one.side == side and one.upper is not None and one.upper <= level]  # fmt: skip
    best_of: dict[str, Verdict] = {}
    for one in sorted(held, key=lambda verdict: verdict.share):
        best_of.setdefault(one.method, one)
    return list(best_of.values())


def rounds_at(level: float) -> str:
    """Return the purpose of the rounds' calls at a level."""
    return f"rounds {level:g}"


def play_rounds(desk: Desk, methods: Sequence[Method], level: float) -> None:
    """Time the untouched call, our best and the peers' best in turn, on one prompt a round.

    A round that was interrupted is played again as a whole.
    """
    best_two = [standing(desk.journal, desk.scale, level, side)[:1] for side in ("ours", "peer")]
    by_name = {method.name: method for method in methods}
    players = [(by_name[one.method], one.value) for pair in best_two for one in pair]
    for number, prompt in enumerate(desk.unseen[: desk.scale.rounds] if len(players) == 2 else ()):
        desk.progress.tick(f"rounds at {level:g}", number, desk.scale.rounds, "")
        if _played(desk, players, level, prompt.id):
            continue
        desk.untouched(prompt, rounds_at(level))
        for method, value in players[:: -1 if number % 2 else 1]:
            desk.once(rounds_at(level), method, value, prompt)


def _played(
    desk: Desk, players: Sequence[tuple[Method, Scalar]], level: float, prompt: str
) -> bool:
    """Tell whether a round stands whole in the journal, made in one run."""
    sides: list[tuple[str, Scalar]] = [(UNTOUCHED, None)]
    sides += [(method.name, value) for method, value in players]
    found = [desk.journal.find(rounds_at(level), name, value, prompt) for name, value in sides]
    return len({shot.run if shot else None for shot in found} - {None}) == 1 and all(found)


def watch_comparable(desk: Desk, method: Method) -> None:
    """Watch the fastest setting within the loosest level: what a method does at its best."""
    point = fastest(desk.journal.points(method.name), max(desk.scale.levels))
    if point is not None:
        desk.portrait(method, point.value)


