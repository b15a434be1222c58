"""`planner plan`: which optimizations to adopt on a device that is not here, in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from planner.cli.common import emit_json, json_option, size_options, table, uncollected

if TYPE_CHECKING:
    from planner.catalog.devices import Card
    from planner.plans.graph import Graph
    from planner.tuning.ladder import Ladder

_GIB = 2**30


@click.command(name="plan")
@click.argument("model")
@click.option("--target", required=True, metavar="DEVICE", help="A catalogued device: h100-sxm.")
@click.option("--budget", metavar="TIME", help="Time that one call may take, like 2s.")
@click.option("--vram", metavar="SIZE", help="Memory to stay within, like 12GiB.")
@click.option("--price", type=click.FloatRange(0), metavar="USD",
              help="Dollars an hour; the catalogue's otherwise.")  # fmt: skip
@click.option("--without", "without_passes", multiple=True, metavar="PASS",
              help="Leave a pass out.")  # fmt: skip
@size_options("height", "width", "frames", "steps", "guidance")
@json_option
@uncollected()
def command(
    model: str, target: str, budget: str | None, vram: str | None, price: float | None,
    without_passes: tuple[str, ...], as_json: bool, **sizes: Any,
) -> None:  # fmt: skip
    """Predict the ladder of passes for MODEL on a device: quantize, fit, cache, fewer steps.

    Nothing is loaded, downloaded or measured. Times and memory are predictions with an interval;
    quality is never predicted. Distillation is not on the ladder yet.

    Exit codes: 0 done, also where no rung meets the goal; 2 unknown model, device or size.
    """
    from planner.catalog.devices import card
    from planner.plans.graph import build
    from planner.prediction.meta import work_of
    from planner.tuning.ladder import Planner
    from planner.tuning.request import goal_of
    from planner.tuning.target import case_on

    device = card(target)
    goal = goal_of(budget, vram, "none")
    graph = build(case_on(model, device, **sizes), without=without_passes)
    ladder = Planner(graph, work_of(model, **sizes), device, goal).climb()
    cost = device.price if price is None else price
    if as_json:
        emit_json(_facts(model, device, graph, ladder, cost))
    else:
        click.echo(_text(model, device, graph, ladder, cost))


def _facts(
    model: str, device: Card, graph: Graph, ladder: Ladder, price: float | None
) -> dict[str, Any]:
    return {
        "model": model, "target": device.id, "status": "predicted", "meets": ladder.meets,
        "floor_seconds": ladder.floor,
        "rungs": [one.model_dump() | {"usd_per_1000": _cost(one.seconds, price)}
                  for one in ladder.rungs],
        "front": [{"plan": plan, "seconds": seconds, "memory": memory}
                  for plan, seconds, memory in ladder.front],
        "excluded": graph.excluded,
    }  # fmt: skip


def _cost(seconds: float, price: float | None) -> float | None:
    """Return dollars for a thousand calls, None without a price."""
    return None if price is None else seconds * price / 3.6


def _text(model: str, device: Card, graph: Graph, ladder: Ladder, price: float | None) -> str:
    rows, before = [], ladder.rungs[0].seconds
    for one in ladder.rungs:
        fits = f"lacks {one.lacks / _GIB:.1f} GiB" if one.lacks else "fits"
        cost = _cost(one.seconds, price)
        rows.append((one.name, f"{one.seconds:.3g} s", f"{one.low:.3g} to {one.high:.3g}",
                     f"{before / one.seconds:.2f}×", f"{one.memory / _GIB:.1f} GiB, {fits}",
                     "–" if cost is None else f"${cost:.2f}", one.plan))  # fmt: skip
        before = one.seconds
    head = ("rung", "a call", "four of five", "buys", "memory", "per 1,000", "plan")
    notes = [f"  {one.name}: {one.quality}; rests on {one.rests_on}" for one in ladder.rungs[1:]]
    verdict = "the last rung meets the goal"
    if ladder.last.lacks:
        verdict = f"no rung fits the memory: the last lacks {ladder.last.lacks / _GIB:.1f} GiB"
    elif not ladder.meets:
        verdict = f"no rung meets the goal; one step of the last takes {ladder.floor:.2g} s at best"
    return "\n".join([
        f"{model} on {device.name}: predicted, nothing was measured", "", table(head, rows), "",
        verdict, *notes, "", "not legal there:", *(f"  {line}" for line in graph.exclusions),
    ])  # fmt: skip
