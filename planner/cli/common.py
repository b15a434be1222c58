"""What several commands share: the one place that writes machine output, and tables.

With `--json` a command prints one document on stdout; everything else goes to stderr.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import click

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on stdout."
)


Command = TypeVar("Command", bound=Callable[..., Any])

_SIZES: dict[str, tuple[Any, str]] = {
    "height": (click.IntRange(1), "Pixels; the model's default otherwise."),
    "width": (click.IntRange(1), "Pixels."),
    "frames": (click.IntRange(1), "Frames of a video."),
    "steps": (click.IntRange(1), "Denoising steps."),
    "guidance": (click.FloatRange(0), "Guidance scale; 1 or less is none."),
    "text-tokens": (click.IntRange(1), "Length of the encoded prompt."),
    "batch": (click.IntRange(1), "Images or videos a call."),
}


def size_options(*names: str) -> Callable[[Command], Command]:
    """Return the options that say what a model is asked to draw, by name and in this order."""

    def decorated(command: Command) -> Command:
        for name in reversed(names):
            kind, said = _SIZES[name]
            command = click.option(f"--{name}", type=kind, help=said)(command)
        return command

    return decorated


dtype_option = click.option(
    "--dtype", type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Number format of weights and activations.",
)  # fmt: skip


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for no cyclic garbage while a command imports and counts, which takes a tenth less time.

    Use it where a command ends soon after. Counted peaks follow reference counts alone.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


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
