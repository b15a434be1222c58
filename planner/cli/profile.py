"""`planner profile`: how a model's steps change, and what every cache would make of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.cli.common import emit_json, json_option, say, size_options, table
from planner.cli.progress import Bar

if TYPE_CHECKING:
    from planner.tuning.profile import CacheProfile, Point, Profile


@click.command(name="profile")
@click.argument("model", required=False)
@size_options("height", "width", "steps", "guidance", "batch")
@click.option("--prompts", type=click.Path(path_type=Path), help="A file of prompts, one a line; "
              "required for any model but shapes.")  # fmt: skip
@click.option("--calls", type=click.IntRange(1, 6), default=3, help="Reference calls to record; 3.")
@click.option("--under", multiple=True, metavar="PASS",
              help="A pass that is on while recording, such as int8_dynamic: what caches see "
              "belongs to what stands before them.")  # fmt: skip
@click.option("--device", help="cpu or cuda; the best there is by default.")
@click.option("--path", help="Folder that module:function is imported from.")
@click.option("--picture", type=click.Path(path_type=Path),
              help="Where it goes; reports/MODEL/DEVICE/profile.png by default.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path(),
              help="Folder for reports/ and this device's calibration (.planner/).")  # fmt: skip
@json_option
def command(
    calls: int, under: tuple[str, ...], picture: Path | None, as_json: bool, **options: Any
) -> None:
    """Record a few reference calls of MODEL and simulate every cache in them.

    Prints for each cache how what it looks at changes from step to step, where its setting changes
    anything, where its cliff lies, and what it would compute and take there: no forward is run for
    that. Writes the curves as a picture. MODEL as in planner tune.

    Exit codes: 0 done, 2 usage, 6 invalid file.
    """
    from planner.reporting.profile_picture import profile_picture
    from planner.tuning.profile import profile

    with Bar() as bar:
        found = profile(options, bar, calls=calls, under=under)
    where = Path("reports") / Path(found.case.model.id).name / found.case.device.slug
    path = picture or options["out"] / where / "profile.png"
    profile_picture(found, path)
    say(f"picture: {path}")
    if as_json:
        document = found.model_dump(mode="json", exclude={"telemetry"})
        emit_json(document | {"picture": str(path)})
    else:
        click.echo(_text(found))


def _text(found: Profile) -> str:
    from planner.reporting.profile_picture import interval

    steps = found.telemetry.steps
    lines = [
        f"{found.case.model.id} on {found.case.device.name}: {steps} steps, "
        f"{found.reference_seconds:.2f} s untouched; recorded under '{found.under}'",
        "",
        table(("cache", "setting", "changes something", "cliff", "step to step (10, 50, 90 %)",
               "computed steps", "seconds", "learned"),
              [_row(cache, interval(cache)) for cache in found.caches]),
    ]  # fmt: skip
    for cache in found.caches:
        rows = [_point(point, steps) for point in cache.points]
        head = (cache.setting, "computed", "predicted s", "error", "steps (first call, branch)")
        lines += ["", cache.name, table(head, rows)]
    if found.blind:
        lines += ["", "legal, and not in the recording:"]
        lines += [f"  {name}: {said}" for name, said in sorted(found.blind.items())]
    if found.excluded:
        lines += ["", "not legal here:"]
        lines += [f"  {name}: {why}" for name, why in sorted(found.excluded.items())]
    return "\n".join(lines)


def _row(cache: CacheProfile, interval: str) -> tuple[str, ...]:
    counts = [point.simulated.computed for point in cache.points]
    seconds = [point.seconds for point in cache.points if point.seconds is not None]
    return (
        cache.name, f"{cache.setting} ({cache.default:g})", interval,
        "" if cache.cliff is None else f"{cache.cliff:.3g}",
        "" if cache.changes is None else ", ".join(f"{one:.2g}" for one in cache.changes),
        f"{max(counts):g} – {min(counts):g}" if counts else "",
        f"{max(seconds):.2f} – {min(seconds):.2f}" if seconds else "not predicted",
        ", ".join(f"{key} {value:.3g}" for key, value in cache.learned.items()),
    )  # fmt: skip


def _point(point: Point, steps: int) -> tuple[str, ...]:
    done = point.simulated
    spread = "" if done.low == done.high else f" ({done.low:g}–{done.high:g})"
    mask = next(iter(done.masks[0].values()))
    return (
        f"{point.value:.3g}", f"{done.computed:.3g}/{steps}{spread}",
        "" if point.seconds is None else f"{point.seconds:.2f}",
        "" if done.error is None else f"{done.error:.2g}", mask,
    )  # fmt: skip
