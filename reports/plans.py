"""Writes plans.md: `python reports/plans.py`. The ladder of every catalogued model on five targets.

The budget of each is a quarter of what the untouched model is predicted to take there.
"""

from __future__ import annotations

from pathlib import Path

from planner.case.goal import Goal
from planner.catalog.devices import Card, card
from planner.catalog.reader import is_embedded, known
from planner.errors import PlannerError
from planner.plans.graph import build
from planner.prediction.estimate import estimate
from planner.prediction.meta import work_of
from planner.tuning.ladder import Planner
from planner.tuning.rungs import Ladder
from planner.tuning.target import case_on

HERE = Path(__file__).parent
TARGETS = ("rtx-4070", "rtx-4090", "rtx-5090", "h100-sxm", "b200")
GIB = 2**30


def climbed(model: str, device: Card) -> Ladder:
    """Return the ladder to a quarter of the untouched time, in the device's memory."""
    case, work = case_on(model, device), work_of(model)
    goal = Goal(budget_seconds=estimate(work, device).seconds / 4)
    return Planner(build(case), work, device, goal).climb()


def line(model: str, target: str) -> str:
    """Return the row of a model on a target, or why there is none."""
    try:
        found = climbed(model, card(target))
    except PlannerError as error:
        return f"| {model} | {target} | – | – | – | {error} |"
    first, last = found.rungs[0], found.last
    reached = "yes" if found.meets else f"lacks {last.lacks / GIB:.0f} GiB" if last.lacks else "no"
    return (f"| {model} | {target} | {first.seconds:.3g} s, {first.memory / GIB:.0f} GiB | "
            f"{last.seconds:.3g} s ({last.low:.3g} to {last.high:.3g}), "
            f"{last.memory / GIB:.0f} GiB | {reached} | `{last.plan}` |")  # fmt: skip


def main() -> None:
    """Plan everything and write the page."""
    models = [name for name in known() if not is_embedded(name)]
    rows = [line(model, target) for model in models for target in TARGETS]
    (HERE / "plans.md").write_text("\n".join([
        "# What planner would do where", "",
        "By `python reports/plans.py`: all of it predicted, nothing measured, quality unknown. The",
        "goal is a quarter of the untouched model's predicted time in the device's memory, at the",
        "catalogue's default call. [How far predictions are off](predictor.md).", "",
        "| model | target | untouched | last rung (four of five) | goal met | plan |",
        "|---|---|---|---|---|---|", *rows, "",
    ]), encoding="utf-8")  # fmt: skip


if __name__ == "__main__":
    main()
