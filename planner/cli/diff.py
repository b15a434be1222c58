"""`planner diff`: how two policies differ."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.common import emit_json, json_option


@click.command(name="diff")
@click.argument("before", metavar="A", type=click.Path(path_type=Path))
@click.argument("after", metavar="B", type=click.Path(path_type=Path))
@json_option
def command(before: Path, after: Path, as_json: bool) -> None:
    """List every place at which policy B differs from policy A: plan, case, evidence, origin.

    Exit codes: 0 done (also where they differ), 2 no such file, 6 invalid file.
    """
    from planner.policy.describe import changes
    from planner.policy.runtime import check

    found = changes(check(before).file, check(after).file)
    if as_json:
        emit_json(found)
        return
    for change in found:
        click.echo(str(change))
    if not found:
        click.echo("the policies say the same")
