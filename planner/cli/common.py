"""What several commands share: the one place that writes machine output, and tables.

With `--json` a command prints one document on stdout; everything else goes to stderr.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on stdout."
)


def emit_json(document: Any) -> None:
    """Print one JSON document on stdout: nouns as their fields, keys in the given order."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=_plain))


def say(message: str = "") -> None:
    """Print a line for people on stderr."""
    click.echo(message, err=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows under a header as aligned columns; the last column is not padded."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    return "\n".join("  ".join(row).rstrip() for row in padded)


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return str(value)
