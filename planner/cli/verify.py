"""`planner verify`: measure a policy again, here and now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.cli.common import emit_json, json_option, say

if TYPE_CHECKING:
    from planner.policy.verify import Held, Verified


@click.command(name="verify")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True,
              help="Calls with and without the plan, alternating; five are the fewest that can "
              "show a drift of latency.")  # fmt: skip
@click.option("--prompts", type=click.IntRange(1), metavar="N",
              help="How many unseen prompts to render; as many as the rounds need if not given.",
              )  # fmt: skip
@click.option("--prompt", "texts", multiple=True, metavar="TEXT",
              help="Render this instead (may be repeated); needed for a model that is not "
              "embedded.")  # fmt: skip
@click.option("--model", help="A folder, Hub id or module:function; the policy's own if it is "
              "an embedded model.")  # fmt: skip
@click.option("--revision", metavar="COMMIT", help="Commit of a Hub model.")
@click.option("--path", metavar="DIR", help="Where the module of a module:function model lies.")
@click.option("--device", metavar="KIND", help="cpu or cuda; the policy's if not given.")
@json_option
def command(
    file: Path, rounds: int, prompts: int | None, texts: tuple[str, ...], model: str | None,
    as_json: bool, **where: Any,
) -> None:  # fmt: skip
    """Render with and without the policy, side by side, and say what drifted.

    A ratio or a mean LPIPS has drifted where a lower bound of the new figure is above the bound
    that the policy states. A cache that reuses more or less than expected is marked, no more.

    Exit codes: 0 nothing drifted, 2 usage, 4 something drifted, 5 the policy does not fit,
    6 invalid file.
    """
    from planner.errors import NotCertified
    from planner.policy.runtime import load

    policy = load(file)
    source = policy.source(model, **where)

    from planner.policy.verify import prompts_for, verify
    from planner.run.devices.cpu import use_threads_of
    from planner.run.pipeline import load_pipeline

    use_threads_of(policy.file.case.device)
    chosen = prompts_for(policy, texts, prompts or rounds * policy.file.case.workload.batch_size)
    found = verify(policy, load_pipeline(source), chosen, rounds=rounds, say=say)
    if as_json:
        emit_json(found.as_json())
    else:
        _print(found)
    if found.drifted:
        way_out = f"tune again for this device, or take {file} as measured elsewhere"
        what = f"{file} does not hold here ({'; '.join(found.drifted)})"
        raise NotCertified(what, value=found.drifted, way_out=way_out)


def _print(found: Verified) -> None:
    click.echo(f"{found.policy}: {found.plan}")
    _figure("ratio to the untouched call", found.ratio)
    if found.lpips is not None:
        _figure(f"mean LPIPS over {found.prompts} images", found.lpips)
    click.echo(f"  untouched call {found.baseline_seconds:.3g} s" + _within(found.holds))
    for difference in found.outside:
        click.echo(f"  outside: {difference}")
    for name, reuse in found.hit_rates.items():
        click.echo(f"  {'unexpected: ' if reuse.unexpected else ''}{name} {reuse}")
    for drift in found.drifted:
        click.echo(f"  drifted: {drift}")
    if not found.drifted:
        click.echo(f"  nothing drifted in {found.rounds} rounds")


def _figure(name: str, held: Held) -> None:
    stated = f"{held.stated:.4g}"
    if held.stated_upper is not None:
        stated += f", at most {held.stated_upper:.4g}"
    click.echo(f"  {name} {held.value:.4g} (stated: {stated})")


def _within(holds: bool | None) -> str:
    if holds is None:
        return ""
    return ": the budget holds" if holds else ": slower than the budget allows for here"
