"""`planner show`: what a policy says."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.common import emit_json, json_option


@click.command(name="show")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def command(file: Path, as_json: bool) -> None:
    """Explain a policy: plan, case, speed with its bound, distance, how that was established.

    Exit codes: 0 done, 2 no such file, 6 invalid file.
    """
    from planner.policy.describe import describe
    from planner.policy.file import document
    from planner.policy.runtime import check

    policy = check(file).file
    if as_json:
        emit_json(document(policy))
        return
    for line in describe(policy):
        click.echo(line)
