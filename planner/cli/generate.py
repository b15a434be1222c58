"""`planner generate`: one image under a policy."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.cli.common import say

if TYPE_CHECKING:
    from planner.policy.claim import Status


@click.command(name="generate")
@click.option("--policy", "file", required=True, type=click.Path(path_type=Path), metavar="FILE",
              help="The policy to apply.")  # fmt: skip
@click.option("--prompt", required=True, help="What to draw.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
              help="Seed of the initial latents.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FILE",
              help="Where to write the image, as PNG.")  # fmt: skip
@click.option("--model", help="A folder, Hub id or module:function; the policy's own if it is "
              "an embedded model.")  # fmt: skip
@click.option("--revision", metavar="COMMIT", help="Commit of a Hub model.")
@click.option("--path", metavar="DIR", help="Where the module of a module:function model lies.")
@click.option("--device", metavar="KIND", help="cpu or cuda; the policy's if not given.")
@click.option("--predicted", is_flag=True, help="Apply it also if nothing of it was measured.")
def command(
    file: Path, prompt: str, seed: int, out: Path, model: str | None, predicted: bool,
    **where: str | None,
) -> None:  # fmt: skip
    """Load the pipeline, apply a policy and render one image.

    Exit codes: 0 done, 2 usage, 5 the policy does not fit, 6 invalid file.
    """
    from planner.policy.runtime import PolicyWarning, load

    measured: tuple[Status, ...] = ("certified", "measured")
    policy = load(file, allow=(*measured, "predicted") if predicted else measured)
    source = policy.source(model, **where)

    from planner.policy.generate import generate
    from planner.run.devices.cpu import use_threads_of
    from planner.run.expected import UnexpectedReuseWarning
    from planner.run.pipeline import load_pipeline

    use_threads_of(policy.file.case.device)
    pipe = load_pipeline(source)
    with warnings.catch_warnings(record=True) as caught:
        for kind in (PolicyWarning, UnexpectedReuseWarning):
            warnings.simplefilter("always", kind)
        stats = generate(policy, pipe, prompt, seed, out)
    for warning in caught:
        say(f"warning: {warning.message}")
    for name, counters in stats.items():
        if counters:
            say(f"{name}: " + ", ".join(f"{key} {value}" for key, value in counters.items()))
    say(f"wrote {out}")
