"""`planner bench`: repeat planner's own comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.cli.common import emit_json, json_option, say, table
from planner.cli.progress import Bar

if TYPE_CHECKING:
    from planner.tuning.bench.document import Comparison, Entry


@click.group(name="bench")
def command() -> None:
    """Repeat planner's comparisons with other libraries, here and now."""


@command.command(name="caching")
@click.option("--quick", is_flag=True, help="Play the recorded best settings again, in a few "
              "minutes; certifies nothing.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path(), show_default="here",
              help="Folder for reports/ and the ledger (.planner/bench/caching/).")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with the comparison that lies there.")
@click.option("--fresh", is_flag=True, help="Start over; the old ledger is kept beside the new.")
@json_option
def caching(quick: bool, out: Path, resume: bool, fresh: bool, as_json: bool) -> None:
    """Compare planner's caches with those of diffusers and cache-dit on the embedded model.

    A whole comparison takes nearly two hours and writes reports/caching.md, caching.json and two
    pictures. It computes on one thread unless OMP_NUM_THREADS says otherwise.

    Exit codes: 0 done, 2 usage, 4 no level at which both sides hold, 6 invalid file,
    7 interrupted, resumable.
    """
    from planner.errors import NotCertified

    found = _replayed(out) if quick else _compared(out, resume=resume, fresh=fresh)
    if as_json:
        emit_json(found)
    else:
        click.echo(_text(found))
    if not quick and not found.certified:
        way_out = "read reports/caching.md for what was measured"
        raise NotCertified("at no level did a setting of either side hold", way_out=way_out)


def _compared(out: Path, *, resume: bool, fresh: bool) -> Comparison:
    from planner.reporting.caching_page import write_report
    from planner.tuning.bench.caching import compare, embedded, use_threads

    use_threads()
    with Bar() as bar:
        found = compare(embedded(out), bar, resume=resume, fresh=fresh)
    say(f"written: {write_report(found, out)}")
    return found


def _replayed(out: Path) -> Comparison:
    from planner.reporting.caching_page import document_path
    from planner.run.devices.cpu import use_threads_of
    from planner.tuning.bench.document import read_comparison
    from planner.tuning.bench.quick import replay

    recorded = read_comparison(document_path(out))
    use_threads_of(recorded.device)
    with Bar() as bar:
        return replay(recorded, bar)


def _text(found: Comparison) -> str:
    rows = [
        (f"{level.lpips:g}", _entry(level.ours), _entry(level.peer),
         "–" if level.ratio is None else f"{level.ratio:.3f}",
         "–" if level.ratio_interval is None else "{:.3f} to {:.3f}".format(*level.ratio_interval))
        for level in found.levels
    ]  # fmt: skip
    return table(("LPIPS", "planner's best", "the peers' best", "times as fast", "95 %"), rows)


def _entry(entry: Entry | None) -> str:
    if entry is None:
        return "none"
    return f"{entry.setting}: {1 / entry.share.value:.2f}× at {entry.lpips.value:.4f}"
