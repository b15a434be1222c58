"""`planner init`: a commented search file to edit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.cli.common import say

if TYPE_CHECKING:
    from planner.passes.base import Domain, Pass

_HEAD = """\
# A declared search: planner tune --search {path}
# Keys are named like the options of `planner tune` and mean the same; options given on the command
# line win. Unknown keys are refused. A line that begins with # is a suggestion.

model: {model} ## shapes, a diffusers folder, a Hub id, or module:function
# revision: "..." ## 40-digit commit of a Hub model
# path: .. ## where the module of module:function lies, seen from this file
# device: cpu ## cpu or cuda; the best there is by default
{prompts}

# The goal: limits on one pipeline call.
budget: 2s ## median time of one call
max_lpips: balanced ## a number, lossless, near, balanced (0.10), aggressive or none
# vram: 12GiB ## peak memory
# prefer: quality ## or speed: what to optimize inside the limits

# The search itself.
search_time: 15m ## everything, certificate included
# trials: 40 ## a second limit
seed: 0
sampler: gp ## or tpe

# The reference call, where it differs from what is known of the model.
{workload}

# with: [{example}] ## only plans that contain these
# without: [{example}] ## only plans that do not

# What the search may try for each setting: narrow it by removing the # and changing it.
# domains:
"""
_KNOWN_PROMPTS = "# prompts: prompts.txt ## one a line; the model's own captions by default"
_PROMPTS = "prompts: prompts.txt ## one a line, seen from this file; required for this model"
_KNOWN_CALL = "# workload: {steps: 50} ## also guidance, height, width, batch, dtype, call"
_CALL = """\
workload:
  steps: 28 ## the steps that you use today
  # guidance: 3.5
  # height: 1024
  # width: 1024
  # batch: 1
  # dtype: bfloat16
  # call: {max_sequence_length: 512} ## any other argument of the pipeline call"""
_COLUMN = 38


@click.command(name="init")
@click.argument("model", default="shapes")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE",
              help="Where to write it; search/<model>.yaml by default.")  # fmt: skip
def command(model: str, out: Path | None) -> None:
    """Write a commented search file for MODEL, to be edited and given to tune --search.

    Nothing is loaded: a local folder, a Hub id or module:function is only written down.
    """
    from planner.errors import UsageError

    path = Path("search") / f"{_label(model)}.yaml" if out is None else out
    if path.exists():
        way_out = "edit it, remove it, or give another --out"
        raise UsageError(f"{path} is there already", value=str(path), way_out=way_out)
    text = search_text(model, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        what = f"cannot write {path} ({error.strerror})"
        raise UsageError(what, value=str(path), way_out="give another --out") from error
    say(f"wrote {path}: edit it, then run `planner tune --search {path}`")


def search_text(model: str, path: Path) -> str:
    """Return the text of a search file, every pass and domain as a commented suggestion."""
    from planner.catalog import reader
    from planner.passes import registry

    every = registry.all_passes()
    known = model in reader.known()
    head = _HEAD.format(
        path=path,
        model=_scalar(model),
        prompts=_KNOWN_PROMPTS if known else _PROMPTS,
        workload=_KNOWN_CALL if known else _CALL,
        example=every[0].name,
    )
    return "\n".join([_aligned(line) for line in (*head.splitlines(), *_domains(every))]) + "\n"


def _aligned(line: str) -> str:
    """Move the comment behind ## to one column."""
    text, found, comment = line.partition(" ## ")
    return f"{text.ljust(_COLUMN)}  # {comment}" if found else text


def _label(model: str) -> str:
    """Return a file name: the last part of a path, Hub id or function."""
    last = model.replace("\\", "/").rstrip("/").rpartition("/")[2].rpartition(":")[2]
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in last).lower() or "search"


def _domains(every: tuple[Pass, ...]) -> Iterator[str]:
    """Yield the searched settings of every pass as comments, in plan order."""
    from planner.passes.base import domains

    for one in every:
        searched = domains(one.settings)
        if searched:
            yield f"#   {one.name}:"
        for name, domain in searched.items():
            meaning = one.settings.model_fields[name].description or ""
            yield f"#     {name}: {_limits(domain)} ## {meaning}"


def _limits(domain: Domain) -> str:
    if domain.choices is not None:
        return f"{{choices: [{', '.join(_scalar(choice) for choice in domain.choices)}]}}"
    parts = [f"low: {domain.low:g}", f"high: {domain.high:g}"]
    parts += [] if domain.step is None else [f"step: {domain.step:g}"]
    parts += ["log: true"] if domain.log else []
    return f"{{{', '.join(parts)}}}"


def _scalar(value: object) -> str:
    """Write a value so that YAML reads it back: a plain word as it is, all else as JSON."""
    plain = isinstance(value, str) and value.isidentifier()
    return str(value) if plain and value not in {"true", "false", "null"} else json.dumps(value)
