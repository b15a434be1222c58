"""`planner passes`: the techniques that planner knows, or the page of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from planner.cli.common import emit_json, json_option, table
from planner.errors import UsageError, nearest

if TYPE_CHECKING:
    from planner.case.case import Case


@click.command(name="passes")
@click.argument("name", required=False)
@click.option("--family", metavar="FAMILY", help="Only of one kind, such as caching.")
@json_option
def command(name: str | None, family: str | None, as_json: bool) -> None:
    """List the optimization passes, or show the whole page of the pass NAME."""
    from planner.passes import registry
    from planner.passes.base import Family

    if name is not None:
        one = registry.get(name)
        if as_json:
            emit_json(_facts(one) | {"doc": one.doc.strip()})
        else:
            click.echo(_page(one))
        return
    found = [one for one in registry.all_passes() if family in (None, one.family.value)]
    if family is not None and family not in tuple(Family):
        way_out = nearest(family, tuple(Family))
        raise UsageError(f"no family is called {family!r}", value=family, way_out=way_out)
    if as_json:
        emit_json([_facts(one) for one in found])
    else:
        click.echo(_list(found))


def _list(found: list[Any]) -> str:
    """Return the passes in plan order, with what each claims and needs below its line."""
    header = ("pass", "family", "stage", "fidelity", "owns")
    rows = [
        (one.name, one.family.value, _stage(one), one.fidelity.value, ", ".join(one.owns) or "-")
        for one in found
    ]
    lines = table(header, rows).splitlines()
    said = [lines[0]]
    for one, line in zip(found, lines[1:], strict=True):
        said += [line, *(f"    {need}" for need in _needs(one))]
    return "\n".join([*said, "", "`planner passes NAME` shows one; `planner graph --why` judges "
                      "them for a model and device."])  # fmt: skip


def _page(one: Any) -> str:
    parts = [f"{one.name}: {one.family.value}, {one.fidelity.value}, put on at stage {_stage(one)}"]
    parts += ["", one.doc.strip(), ""]
    if one.owns:
        parts.append("Owns: " + ", ".join(one.owns))
    parts += [f"- {need}" for need in _needs(one)]
    parts += [f"- {avoid}" for avoid in _avoids(one)]
    rows = [
        (row["name"], row["default"], row["range"], row["search"], row["meaning"])
        for row in _settings(one)
    ]
    if rows:
        parts += ["", table(("setting", "default", "may be", "searched", "meaning"), rows)]
    return "\n".join(parts)


def _facts(one: Any) -> dict[str, Any]:
    return {
        "name": one.name,
        "family": one.family.value,
        "stage": _stage(one),
        "fidelity": one.fidelity.value,
        "owns": list(one.owns),
        "needs": _needs(one),
        "avoids": _avoids(one),
        "settings": _settings(one),
        "batch_invariant": one.batch_invariant,
        "reversible": one.reversible,
        "source": one.source,
    }


def _stage(one: Any) -> str:
    stage: str = one.stage.name.lower().replace("_", " ")
    return stage


def _needs(one: Any) -> list[str]:
    """Return one sentence a need and a library, with the source."""
    said = []
    for need in one.needs:
        answer = need.missing(_poorest())
        page = answer.partition(";")[0] if answer else need.missing.__doc__
        words = page or f"{one.name} needs {need.missing.__name__.strip('_').replace('_', ' ')}"
        said.append(f"{words.strip().rstrip('.')} ({need.source})")
    return said + [f"{one.name} needs the library {library}" for library in one.imports]


def _poorest() -> Case:
    """Return a case that fulfils nearly no need, so that passes say what they miss."""
    from planner.case.case import Case
    from planner.case.device import Device
    from planner.case.model import Model, Traits
    from planner.case.workload import Workload

    return Case(
        model=Model(
            id="", pipeline="", components={}, traits=Traits(denoiser="", denoiser_class="")
        ),
        device=Device(kind="fake", name="none", memory_bytes=0),
        workload=Workload(call={"num_inference_steps": 1, "sigmas": None}),
    )


def _avoids(one: Any) -> list[str]:
    return [f"avoids {a.other} ({a.verdict}): {a.because} ({a.source})" for a in one.avoids]


def _settings(one: Any) -> list[dict[str, str]]:
    """Return name, default, legal range, search domain and meaning of every setting."""
    from planner.passes.base import domains

    searched = domains(one.settings)
    return [
        {
            "name": name,
            "default": str(info.default),
            "range": _range(info.metadata),
            "search": _domain(searched[name]) if name in searched else "-",
            "meaning": info.description or "",
        }
        for name, info in one.settings.model_fields.items()
    ]


def _range(metadata: list[Any]) -> str:
    """Return the legal range of a field from its bounds (annotated-types' Ge and Le)."""
    bounds = {type(bound).__name__: bound for bound in metadata}
    low = f"{bounds['Ge'].ge:g}" if "Ge" in bounds else ""
    high = f"{bounds['Le'].le:g}" if "Le" in bounds else ""
    return f"{low}..{high}" if low or high else "any"


def _domain(domain: Any) -> str:
    if domain.choices is not None:
        return "one of " + ", ".join(str(choice) for choice in domain.choices)
    step = "" if domain.step is None else f" by {domain.step:g}"
    return f"{domain.low:g}..{domain.high:g}{step}{' (log)' if domain.log else ''}"
