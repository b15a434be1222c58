"""Writes the page of a study: one HTML file with figures, pictures and tables, nothing outside it.

It needs no script and no network, follows the reader's light or dark setting, and is the same
bytes for the same ledger. It can be written for an unfinished study and for one without a policy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from planner.measure.lpips import IMPLEMENTATION, Lpips
from planner.policy.atomic import replace
from planner.policy.file import PolicyFile
from planner.reporting import figures, tables, words
from planner.reporting.draw_foretold import draw_foretold
from planner.reporting.draw_front import draw_front, draw_path
from planner.reporting.draw_parts import Bar, Guide, draw_bars, draw_dots, draw_strips
from planner.reporting.findings import Findings, read_findings
from planner.reporting.pictures import Pairs, legend, pairs
from planner.reporting.svg import HALF, both
from planner.reporting.unused import unused
from planner.reporting.verdict import headline, summary
from planner.tuning.score import AIM

_TEMPLATES = Path(__file__).parent / "templates"
_DRAWINGS = ("front", "path", "foretold", "strips", "bought_seconds", "bought_lpips", "rounds",
             "tail")  # fmt: skip


def write_page(path: Path, session_folder: Path, policy: PolicyFile | None) -> None:
    """Write the page of the study in a folder; an older page stays whole until the end.

    Raises `UsageError` where there is no ledger or the place cannot be written to,
    `InvalidFile` where the ledger is damaged, `PlannerError` on a full disk.
    """
    found = read_findings(session_folder, policy)
    replace(path, render(found, session_folder / "images").encode())


def render(found: Findings, images: Path) -> str:
    """Return the page's HTML."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    style = Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8"))
    return environment.get_template("page.html").render(
        style=style, words=words, implementation=IMPLEMENTATION, aim=AIM, legend=legend(),
        found=found, head=headline(found), rows=summary(found), pictures=_pictures(found, images),
        figures=_figures(found), steps=figures.steps(found), trials=tables.trial_rows(found),
        finalists=tables.finalist_rows(found), certificate=tables.certificate_facts(found),
        bought=tables.bought_rows(found), groups=tables.environment(found),
        foretold=tables.foretold_facts(found), skipped=tables.skipped_rows(found),
        excluded=dict(found.facts.get("excluded", {})), unused=unused(found),
    )  # fmt: skip


def _pictures(found: Findings, images: Path) -> Pairs | None:
    """Load the worst and the median pairs of the shown plan, where it has images."""
    distances = found.distances(found.plan)
    if found.plan is None or not distances:
        return None
    folder = found.plan.digest()[:12]
    return pairs(images, folder, found.prompts, distances, lambda a, b: _lpips().maps(a, b))


def _figures(found: Findings) -> dict[str, Markup]:
    """Return the drawings by name, empty where this study has no figures for one."""
    drawn: dict[str, Markup] = dict.fromkeys(_DRAWINGS, Markup(""))
    points, unseen = figures.points(found), figures.certified(found)
    if points and found.reference is not None:
        reference = found.reference
        drawn["front"] = both(lambda w: draw_front(points, found.goal, reference, unseen, w))
    attempts = figures.path(found)
    if attempts:
        name = "mean LPIPS" if found.goal.by_quality else "seconds a call"
        limit = (
            _guide("cap", found.goal.max_lpips, "{:g}".format, "limit") if found.goal.by_quality
            else _guide("budget", found.goal.budget_seconds, words.seconds, "limit")
        )  # fmt: skip
        drawn["path"] = both(lambda w: draw_path(attempts, name, limit, w))
    foretold = figures.foretold(found)
    if foretold:
        drawn["foretold"] = both(lambda w: draw_foretold(foretold, w), HALF)
    strips = figures.strips(found)
    if strips:
        drawn["strips"] = both(lambda w: draw_strips(strips, w))
    return drawn | _bought(found) | _calls(found)


def _bought(found: Findings) -> dict[str, Markup]:
    """Draw seconds and LPIPS of the winner with all passes and without each."""
    if not found.bought or found.trial is None:
        return {}
    mine = found.scores[found.trial.number].seconds
    seconds = [Bar("all passes", mine, words.seconds(mine), "shown")] + [
        Bar(f"without {one.name}", one.seconds, words.seconds(one.seconds), "other")
        for one in found.bought if one.seconds is not None
    ]  # fmt: skip
    together = next((one.lpips_with for one in found.bought if one.lpips_with is not None), None)
    lpips = [] if together is None else [
        Bar("all passes", together, words.lpips(together), "shown")
    ]  # fmt: skip
    lpips += [
        Bar(f"without {one.name}", one.lpips, words.lpips(one.lpips), "other")
        for one in found.bought if one.lpips is not None
    ]  # fmt: skip
    drawn = {"bought_seconds": both(lambda w: draw_bars(seconds, w), HALF)}
    if lpips:
        drawn["bought_lpips"] = both(lambda w: draw_bars(lpips, w), HALF)
    return drawn


def _calls(found: Findings) -> dict[str, Markup]:
    """Draw the shown plan's single calls on unseen prompts against the limits."""
    rounds = found.rounds(found.plan)
    unseen = figures.certified(found)
    if rounds is None or unseen is None or found.reference is None:
        return {}
    goal = found.goal
    seconds = [ratio * found.reference for ratio in rounds.ratios]
    times = [
        *_guide("median", unseen.seconds, words.seconds, "mean"),
        *_guide("upper bound", unseen.seconds_upper, words.seconds, "bound"),
        *_guide("budget", goal.budget_seconds, words.seconds, "limit"),
    ]
    distances = [
        *_guide("mean", unseen.lpips, words.lpips, "mean"),
        *_guide("upper bound", unseen.lpips_upper, words.lpips, "bound"),
        *_guide("cap", goal.max_lpips, "{:.4g}".format, "limit"),
    ]
    ordered = sorted(rounds.lpips)
    return {
        "rounds": both(
            lambda w: draw_dots(seconds, times, "rounds, in order", "seconds a call", w), HALF
        ),
        "tail": both(
            lambda w: draw_dots(ordered, distances, "prompts, best first", "LPIPS", w), HALF
        ),
    }  # fmt: skip


def _guide(
    name: str, value: float | None, write: Callable[[float], str], style: str
) -> list[Guide]:
    return [] if value is None else [Guide(value, f"{name} {write(value)}", style)]



@cache
def _lpips() -> Lpips:
    return Lpips()
