"""`planner lpips`: the distance between two images, as the quality gate measures it."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.common import emit_json, json_option


@click.command(name="lpips")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@json_option
def command(a: Path, b: Path, as_json: bool) -> None:
    """Print the LPIPS distance between images A and B (AlexNet, nothing is downloaded).

    0 means the same to the eye of the network; 0.1 is a difference that one sees side by side.
    """
    from planner.measure.images import load_png
    from planner.measure.lpips import IMPLEMENTATION, Lpips

    distance = Lpips().distance(load_png(a), load_png(b))
    if as_json:
        emit_json({"lpips": distance, "a": str(a), "b": str(b), "implementation": IMPLEMENTATION})
    else:
        click.echo(f"{distance:.3f}")
