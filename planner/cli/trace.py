"""`planner trace`: what a model computes, from its architecture alone."""

from __future__ import annotations

from typing import Any

import click

from planner.cli.common import (
    dtype_option,
    emit_json,
    json_option,
    size_options,
    table,
    uncollected,
)

_GIB = 2**30


@click.command(name="trace")
@click.argument("model")
@size_options("height", "width", "frames", "steps", "guidance", "text-tokens", "batch")
@dtype_option
@json_option
@uncollected()
def command(model: str, dtype: str | None, as_json: bool, **sizes: Any) -> None:
    """Count what one call of MODEL computes: operations, bytes, parameters, peak activations.

    MODEL is a catalogued model or a diffusers folder; its weights may be absent. Nothing is
    downloaded. Totals are of linear layers, attention and convolutions (one multiply-add is two).

    Exit codes: 0 done, 2 unknown model or a size that it refuses, 6 invalid config.
    """
    from planner.prediction.meta import entry_for, shape_of, work_of
    from planner.prediction.summary import summary

    entry = entry_for(model)
    if dtype is not None:
        entry = entry.model_copy(update={"dtype": dtype})
    work = work_of(entry, **sizes)
    facts = summary(entry, shape_of(entry, **sizes), work)
    if as_json:
        emit_json(facts)
    else:
        click.echo(_text(facts))


def _text(facts: dict[str, Any]) -> str:
    shape = facts["shape"]
    frames = f"×{shape['frames']}" if shape["frames"] > 1 else ""
    size = f"{shape['height']}×{shape['width']}{frames}"
    text = f"{shape['text_tokens']} text tokens, batch {shape['batch']}, {facts['dtype']}"
    lines = [f"{facts['title']}, {size}, {shape['steps']} steps, {text}", ""]
    lines += [
        f"denoiser   {facts['total_tflops']:,.2f} TFLOPs in {facts['forwards']} forwards "
        f"of {facts['tflops_per_forward']:,.3f}; {facts['attention_share']:.0%} is attention",
        f"encoders   {facts['encode_tflops']:,.2f} TFLOPs",
        f"decoder    {facts['decode_tflops']:,.2f} TFLOPs",
        "",
        table(("phase", "calls", "TFLOPs a call", "GiB moved", "launches", "peak GiB"),
              [_phase(phase) for phase in facts["phases"]]),
        "",
        table(("denoiser, one call", "TFLOPs", "GiB moved", "launches"), _denoiser(facts)),
        "",
        table(("component", "parameters", "GiB"), _components(facts)),
    ]  # fmt: skip
    return "\n".join(lines)


def _phase(phase: dict[str, Any]) -> tuple[str, ...]:
    name = phase["name"] if phase["branch"] is None else f"{phase['name']} {phase['branch']}"
    row = _row(phase)
    return (name, f"{phase['calls']:g}", *row, f"{phase['peak_bytes'] / _GIB:.2f}")


def _denoiser(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the first denoise phase by kind, then by module group."""
    phase = next(phase for phase in facts["phases"] if phase["name"] == "denoise")
    kinds = [(name, *_row(row)) for name, row in phase["kinds"].items()]
    groups = [(name, *_row(row)) for name, row in phase["groups"].items()]
    return [*kinds, ("", "", "", ""), *groups]


def _row(row: dict[str, float]) -> tuple[str, str, str]:
    return (f"{row['tflops']:,.3f}", f"{row['bytes'] / _GIB:,.2f}", f"{row['launches']:,}")


def _components(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (name, f"{count / 1e9:.4f} B", f"{facts['weight_bytes'][name] / _GIB:.2f}")
        for name, count in facts["parameters"].items()
    ]
