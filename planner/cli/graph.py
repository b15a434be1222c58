"""`planner graph`: what may stand together for a model on this device, and why not."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.cli.common import emit_json, json_option, say, table

if TYPE_CHECKING:
    from planner.case.case import Case
    from planner.plans.graph import Graph


@click.command(name="graph")
@click.argument("model", required=False)
@click.option("--why", is_flag=True, help="Name the reason for every pass that is not legal.")
@click.option("--png", type=click.Path(path_type=Path), help="Draw the graph into this file.")
@click.option("--target", metavar="DEVICE", help="A catalogued device instead of this one, such as "
              "h100-sxm; MODEL is then a catalogued model or a diffusers folder.")  # fmt: skip
@click.option("--device", metavar="KIND", help="cpu or cuda; the best available by default.")
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]),
              help="Number format to load in.")  # fmt: skip
@click.option("--revision", metavar="COMMIT", help="Commit of a Hub model.")
@click.option("--path", metavar="DIR", help="Folder that module:function is imported from.")
@click.option("--steps", type=click.IntRange(1), help="Steps of the reference call.")
@click.option("--guidance", type=float, help="Guidance scale of the reference call.")
@click.option("--with", "with_passes", multiple=True, metavar="PASS", help="Only plans with it.")
@click.option("--without", "without_passes", multiple=True, metavar="PASS",
              help="Only plans without it.")  # fmt: skip
@click.option("--search", type=click.Path(path_type=Path), metavar="FILE",
              help="A search file; options given here take precedence.")  # fmt: skip
@json_option
def command(
    why: bool, png: Path | None, target: str | None, search: Path | None, as_json: bool,
    **flags: Any,
) -> None:  # fmt: skip
    """Show the passes that are legal for MODEL here, in plan order, and their clashes.

    MODEL is shapes (the default), a local diffusers folder, a Hub id, or module:function that
    returns a pipeline. It is loaded to be described; nothing is rendered. With --target it is
    described from its configs alone, with the libraries that are installed here.
    """
    from planner.plans.graph import build
    from planner.tuning.prepare import merged

    asked = merged(flags, search)
    case = _here(asked) if target is None else _there(target, asked)
    graph = build(
        case, with_=asked.get("with_passes", ()), without=asked.get("without_passes", ())
    )
    if png is not None:
        graph.picture(png)
        say(f"drawn into {png}")
    if as_json:
        emit_json(_facts(graph))
    else:
        click.echo(_text(graph, why))


def _here(asked: dict[str, Any]) -> Case:
    from planner.run.pipeline import case_of, load_pipeline
    from planner.tuning.prepare import reference

    source, workload = reference(asked)
    return case_of(load_pipeline(source), source, workload)


def _there(target: str, asked: dict[str, Any]) -> Case:
    from planner.catalog.devices import card
    from planner.tuning.target import case_on

    sizes = {name: asked.get(name) for name in ("steps", "guidance")}
    return case_on(str(asked.get("model") or "shapes"), card(target), **sizes)


def _facts(graph: Graph) -> dict[str, Any]:
    return {
        "model": graph.case.model.id,
        "device": graph.case.device.name,
        "legal": [one.name for one in graph.legal],
        "excluded": graph.excluded,
        "clashes": [clash._asdict() for clash in graph.clashes],
        "stacks": graph.stacks(),
    }


def _text(graph: Graph, why: bool) -> str:
    rows = [
        (str(number), one.name, one.stage.name.lower().replace("_", " "), one.fidelity.value)
        for number, one in enumerate(graph.legal, 1)
    ]
    lines = [f"{graph.case.model.id} on {graph.case.device.name}", ""]
    lines += [table(("", "pass", "stage", "fidelity"), rows), ""]
    lines += _clashes(graph)
    if graph.excluded and why:
        lines += ["", "not legal here:"]
        lines += [f"  {line}" for line in graph.exclusions]
    elif graph.excluded:
        names = ", ".join(sorted(graph.excluded))
        lines += ["", f"not legal here: {names} (--why names the reasons)"]
    elif why:
        lines += ["", "every pass is legal here"]
    return "\n".join(lines)


def _clashes(graph: Graph) -> list[str]:
    """Return a line for every clash; passes that all claim one thing share a line."""
    claimed: dict[str, list[str]] = {}
    for one in graph.legal:
        for claim in one.owns:
            claimed.setdefault(claim, []).append(one.name)
    groups = {claim: names for claim, names in claimed.items() if len(names) > 2}
    lines = [f"not together: of {', '.join(names)} keep one, since each owns {claim} "
             "(a thing has one owner in a plan)" for claim, names in groups.items()]  # fmt: skip
    shared = {f"{a} and {b} both own {claim}: keep one"
              for claim, names in groups.items() for a, b in combinations(names, 2)}  # fmt: skip
    return lines + [clash.worded for clash in graph.clashes if clash.because not in shared]
