"""`planner schema`: the JSON Schema of a policy, for editors."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.common import say


@click.command(name="schema")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE",
              help="Write it there: policies look in policies/planner-v1.schema.json.")  # fmt: skip
def command(out: Path | None) -> None:
    """Print the JSON Schema (draft 7) of policy files, or write it to a file."""
    from planner.policy.atomic import replace
    from planner.policy.file import schema_text

    if out is None:
        click.echo(schema_text(), nl=False)
        return
    replace(out, schema_text().encode())
    say(f"wrote {out}")
