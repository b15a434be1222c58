"""`planner tune`: search, certify and write a policy."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from planner.cli.common import emit_json
from planner.cli.progress import Bar


@click.command(name="tune")
@click.argument("model", required=False)
@click.option("--budget", help="Time that one generation may take, such as 2s or 850ms.")
@click.option("--vram", help="Peak memory that a call may take, such as 12GiB.")
@click.option("--max-lpips", help="Cap on the mean LPIPS: a number, lossless, near, balanced, "
              "aggressive or none. A budget alone implies balanced (0.10).")  # fmt: skip
@click.option("--prefer", type=click.Choice(["quality", "speed"]),
              help="What to optimize inside the limits.")  # fmt: skip
@click.option("--prompts", type=click.Path(path_type=Path), help="A file of prompts, one a line; "
              "required for any model but shapes.")  # fmt: skip
@click.option("--steps", type=click.IntRange(1), help="Steps of the reference call.")
@click.option("--height", type=click.IntRange(1), help="Height of the images in pixels.")
@click.option("--width", type=click.IntRange(1), help="Width of the images in pixels.")
@click.option("--guidance", type=float, help="Guidance scale of the reference call.")
@click.option("--batch", type=click.IntRange(1), help="Prompts in one pipeline call.")
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]),
              help="Number format that the weights are loaded in.")  # fmt: skip
@click.option("--device", help="cpu or cuda; the best there is by default.")
@click.option("--revision", help="Commit of a Hub model.")
@click.option("--path", help="Folder that module:function is imported from.")
@click.option("--with", "with_passes", multiple=True, metavar="PASS",
              help="Search only plans that contain this pass.")  # fmt: skip
@click.option("--without", "without_passes", multiple=True, metavar="PASS",
              help="Leave this pass out.")  # fmt: skip
@click.option("--search", "search_file", type=click.Path(path_type=Path),
              help="A search file; options given here take precedence.")  # fmt: skip
@click.option("--search-time", help="Time that the whole search may take, certificate included; "
              "15m by default.")  # fmt: skip
@click.option("--trials", type=click.IntRange(1), help="Stop the search after this many trials.")
@click.option("--sampler", type=click.Choice(["gp", "tpe"]), help="Optuna sampler; gp by default.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(),
              help="Folder for policies/, reports/ and the study (.planner/).")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), help="Seed of sampler, prompts and latents.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--dry-run", is_flag=True, help="Show the graph, the excluded passes and the "
              "estimated time; search nothing.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with the study that lies there.")
@click.option("--fresh", is_flag=True, help="Start over; the old study is kept beside the new.")
@click.option("--no-certify", is_flag=True, help="Write a policy of status measured.")
def command(
    as_json: bool, dry_run: bool, resume: bool, fresh: bool, search_file: Path | None,
    **options: Any,
) -> None:  # fmt: skip
    """Find the best plan for MODEL inside the limits, certify it and write a policy.

    MODEL is shapes (the embedded model, the default), a folder that save_pretrained wrote, a Hub
    id, or module:function that returns a pipeline.

    Every trial prints what it was predicted to take, with an interval, beside what it took. A plan
    whose optimistic end misses the budget is skipped. A CPU is calibrated first, once, in seconds.

    Exit codes: 0 done, 2 usage, 3 no plan meets the goal, 4 not certified, 6 invalid file,
    7 interrupted (--resume goes on). With --json, 3, 4 and 7 print the best effort.
    """
    from planner.errors import UsageError
    from planner.tuning.prepare import dry_run as estimate
    from planner.tuning.prepare import prepare

    if resume and fresh:
        raise UsageError("--resume and --fresh exclude each other", way_out="give one of them")
    request = prepare(options, search_file, command=shlex.join(["planner", *sys.argv[1:]]))
    with Bar() as bar:
        if dry_run:
            found = estimate(request, bar)
            if as_json:
                emit_json(found)
            return
        from planner.reporting.tuned import tune_and_report
        from planner.reporting.unreached import STATUS, unreached

        try:
            result = tune_and_report(request, bar, resume=resume, fresh=fresh)
        except tuple(STATUS) as error:
            if as_json:
                emit_json(unreached(request, error))
            raise
    if as_json:
        emit_json(result.model_dump(mode="json"))
    else:
        _print(result)


def _print(result: Any) -> None:
    lpips = "" if result.lpips is None else f", LPIPS {result.lpips.value:.4f}"
    if result.lpips is not None and result.lpips.upper is not None:
        lpips += f" (at most {result.lpips.upper:.4f})"
    upper = f" (at most {result.latency.upper:.2f} s)" if result.latency.upper else ""
    click.echo(f"{result.status}: {result.plan}")
    untouched = f"{result.baseline.value:.2f} s untouched"
    click.echo(f"  {result.latency.value:.2f} s a call{upper} against {untouched}: "
               f"{result.speedup:.2f}x{lpips}")  # fmt: skip
    click.echo(f"  {result.trials} trials ({result.failed_trials} failed) in {result.seconds:.0f} s"
               f", {result.share_in_pipeline:.0%} of it in steady pipeline calls, "
               f"{result.overhead_seconds_per_trial:.1f} s overhead a trial")  # fmt: skip
    click.echo(f"  policy: {result.policy}")
    if result.page is not None:
        click.echo(f"  page:   {result.page}")
    click.echo(f'  use it: planner.load("{result.policy}").apply(pipe)')
