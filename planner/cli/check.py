"""`planner check`: read policies strictly, without torch."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="check")
@click.argument("files", nargs=-1, required=True, metavar="FILE…", type=click.Path(path_type=Path))
@click.pass_context
def command(context: click.Context, files: tuple[Path, ...]) -> None:
    """Check policy files: syntax, schema, digest, passes and their settings.

    One line a file; all are checked. Nothing is executed and no pipeline is needed; whether a
    policy fits one is seen when it is applied.

    Exit codes: 0 all are sound, 2 no such file, 6 invalid file (the first one's code).
    """
    from planner.errors import PlannerError
    from planner.policy.runtime import check

    codes = []
    for file in files:
        try:
            policy = check(file)
        except PlannerError as error:
            click.echo(f"bad  {error}", err=True)
            codes.append(error.exit_code)
        else:
            click.echo(f"ok   {file}: {policy.status}, {policy.plan}")
    context.exit(codes[0] if codes else 0)
