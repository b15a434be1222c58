"""`planner plan`: which optimizations to adopt on a device that is not here, in which order."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.cli.common import (
    dtype_option,
    emit_json,
    json_option,
    say,
    size_options,
    table,
    uncollected,
)

if TYPE_CHECKING:
    from planner.tuning.planning import Planned

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
@click.option("--emit", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write the last rung as a policy of status predicted.")  # fmt: skip
@dtype_option
@size_options("height", "width", "frames", "steps", "guidance")
@json_option
@uncollected()
def command(model: str, emit: Path | None, as_json: bool, **asked: Any) -> None:
    """Predict the ladder of passes for MODEL on a device: quantize, fit, cache, fewer steps.

    Nothing is loaded, downloaded or measured. Times and memory are predictions with an interval;
    quality is never predicted, only what others published of it is shown. The distillation rung
    joins the ladder with its own family of passes; until then released students are named.

    A policy that --emit writes is refused by `planner.load` unless it is asked for with
    allow=("predicted",).

    Exit codes: 0 done, also where no rung meets the goal; 2 unknown model, device or size; 3 no
    rung meets the goal, with --emit: nothing is written.
    """
    from planner.policy.file import write_policy
    from planner.tuning.planning import plan

    planned = plan(model, **asked)
    if as_json:
        emit_json(_facts(model, planned))
    else:
        click.echo(_text(model, planned))
    if emit is not None:
        write_policy(planned.policy(shlex.join(["planner", *sys.argv[1:]])), emit)
        say(f"wrote {emit}, a prediction: planner.load({str(emit)!r}, allow=('predicted',))")


def _facts(model: str, planned: Planned) -> dict[str, Any]:
    ladder = planned.ladder
    return {
        "model": model, "target": planned.card.id, "status": "predicted", "meets": ladder.meets,
        "floor_seconds": sum(ladder.floor.values()), "floor": ladder.floor,
        "rungs": [one.model_dump() | {"usd_per_1000": planned.usd_per_1000(one)}
                  for one in ladder.rungs],
        "front": [{"plan": plan, "seconds": seconds, "memory": memory}
                  for plan, seconds, memory in ladder.front],
        "excluded": planned.excluded,
    }  # fmt: skip


def _text(model: str, planned: Planned) -> str:
    ladder = planned.ladder
    rows, before = [], ladder.rungs[0].seconds
    for one in ladder.rungs:
        fits = f"lacks {one.lacks / _GIB:.1f} GiB" if one.lacks else "fits"
        cost = planned.usd_per_1000(one)
        seconds, low, high = map(_short, (one.seconds, one.low, one.high))
        rows.append((one.name, f"{seconds} s", f"{low} to {high}",
                     f"{before / one.seconds:.2f}×", f"{one.memory / _GIB:.1f} GiB, {fits}",
                     "–" if cost is None else f"${cost:.2f}", one.plan))  # fmt: skip
        before = one.seconds
    head = ("rung", "a call", "four of five", "buys", "memory", "per 1,000", "plan")
    notes = [f"  {one.name}: {one.quality}; rests on {one.rests_on}" for one in ladder.rungs[1:]]
    notes.append(f"  distillation: not on the ladder yet; {_students(model)}")
    verdict = "the last rung meets the goal"
    if ladder.last.lacks:
        verdict = f"no rung fits the memory: the last lacks {ladder.last.lacks / _GIB:.1f} GiB"
    elif not ladder.meets:
        verdict = f"no rung meets the goal: {ladder.floor_said}"
    return "\n".join([
        f"{model} on {planned.card.name}: predicted, nothing was measured", "", table(head, rows),
        "", verdict, *notes, "", "not legal there:",
        *(f"  {line}" for line in planned.exclusions),
    ])  # fmt: skip


def _short(seconds: float) -> str:
    return f"{seconds:.3g}" if seconds < 1000 else f"{seconds:.0f}"


def _students(model: str) -> str:
    """Name the released few-step weights that the catalogue knows of a model."""
    from planner.prediction.meta import entry_for

    known = [f"{one.repository} ({' or '.join(map(str, one.steps))} steps)"
             for one in entry_for(model).distilled]  # fmt: skip
    return f"released students of this model: {', '.join(known) or 'none known'}"
