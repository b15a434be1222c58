"""`planner predict`: what a model would take on a device, and how far such predictions are off."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.cli.common import dtype_option, emit_json, json_option, say, size_options, table
from planner.errors import UsageError

if TYPE_CHECKING:
    from planner.catalog.devices import Card
    from planner.prediction.estimate import Estimate
    from planner.prediction.validate import Verdict


@click.command(name="predict")
@click.argument("model", required=False)
@click.option("--target", metavar="DEVICE", help="A catalogued device, such as h100-sxm.")
@size_options("height", "width", "frames", "steps", "guidance", "batch")
@dtype_option
@click.option("--compiled", is_flag=True, help="With the blocks compiled.")
@click.option("--validate", type=click.Path(path_type=Path), metavar="CSV",
              help="Hold predictions against published rows instead.")  # fmt: skip
@json_option
def command(
    model: str | None, target: str | None, dtype: str | None, compiled: bool,
    validate: Path | None, as_json: bool, **sizes: Any,
) -> None:  # fmt: skip
    """Predict seconds and memory of MODEL on a device that need not be here.

    With --validate, every row of a file in published.csv's format is predicted and compared; lines
    that cannot be read are named, and the others are still judged.

    Exit codes: 0 done, 2 unknown model or device, 6 a file without its columns.
    """
    if validate is not None:
        _validate(validate, as_json)
        return
    if model is None or target is None:
        raise UsageError("a prediction needs a model and a device", value=model or target,
                         way_out="write planner predict flux.1-dev --target h100-sxm, "
                         "or --validate FILE")  # fmt: skip
    from planner.catalog.devices import card

    device = card(target)
    found = _predicted(model, device, dtype, compiled, sizes)
    fits = found.memory.total <= device.memory_bytes
    if as_json:
        memory = found.memory.model_dump() | {"total": found.memory.total}
        emit_json({"model": model, "target": device.id,
                   **found.model_dump(), "memory": memory, "fits": fits})  # fmt: skip
    else:
        click.echo(_text(model, device, found, fits))


def _predicted(
    model: str, device: Card, dtype: str | None, compiled: bool, sizes: dict[str, Any]
) -> Estimate:
    from planner.passes import registry
    from planner.prediction.estimate import estimate
    from planner.prediction.meta import work_of

    work = work_of(model, dtype, **sizes)
    if compiled:
        one = registry.get("compile_blocks")
        work = one.effect(work, one.settings(), None)
    return estimate(work, device, "compiled" if compiled else "eager")


def _text(model: str, device: Card, found: Estimate, fits: bool) -> str:
    memory = found.memory
    there = f"{device.memory_bytes / 2**30:.0f} GiB"
    rows = [
        ("seconds a call", f"{found.seconds:.3g} (four of five between {found.low:.3g} "
                           f"and {found.high:.3g})"),
        *((f"  {name}", f"{value:.3g}") for name, value in found.by_phase.items()),
        ("peak memory", f"{memory.total / 2**30:.1f} GiB, in the phase {memory.phase}; "
                        f"{'fits' if fits else 'does not fit'} {there}"),
        ("  weights", f"{memory.weights / 2**30:.1f} GiB"),
        ("  activations", f"{memory.activations / 2**30:.1f} GiB"),
        ("rests on", f"rows published of {found.rests_on}" if found.rests_on != "datasheet"
                     else "the datasheet alone"),
    ]  # fmt: skip
    return f"{model} on {device.name}, predicted\n" + table(("", ""), rows)


def _validate(path: Path, as_json: bool) -> None:
    from planner.prediction.published import read
    from planner.prediction.speeds import fitted
    from planner.prediction.validate import validate

    rows, faulty = read(path)
    for one in faulty:
        say(str(one))
    say(f"predicting {len(rows)} rows")
    found = validate(rows, fitted())
    if as_json:
        emit_json(_facts(found) | {"faulty": [str(one) for one in faulty]})
    else:
        click.echo(_judged(found))


def _facts(found: Verdict) -> dict[str, Any]:
    rows = [one._asdict() | {"error": one.error} for one in found.rows]
    return {**found.groups, "coverage": found.coverage, "skipped": found.skipped, "rows": rows}


def _judged(found: Verdict) -> str:
    from planner.prediction.validate import reasons

    rows = [
        (one.group, one.id, one.model, one.device, f"{one.predicted:.4g}",
         f"{one.published:.4g}", f"{one.error:+.1%}")
        for one in found.rows
    ]  # fmt: skip
    groups = [
        (name, str(one["n"]), f"{one['median_ape']:.1%}", f"{one['mean_ape']:.1%}",
         f"{found.coverage[name]:.0%}")
        for name, one in found.groups.items()
    ]  # fmt: skip
    head = ("group", "row", "model", "device", "predicted", "published", "error")
    return "\n".join([
        table(head, rows), "",
        table(("group", "n", "median error", "mean error", "coverage"), groups), "",
        "not predicted:", *(f"  {line}" for line in reasons(found.skipped)),
    ])  # fmt: skip
