"""`planner doctor`: what this device is, what is installed, and what it can do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.cli.common import emit_json, json_option, say, table

if TYPE_CHECKING:
    from planner.case.device import Device
    from planner.measure.calibration import Calibration


@click.command(name="doctor")
@click.option("--device", metavar="KIND", help="cpu or cuda; the best available by default.")
@click.option("--calibrate", is_flag=True, help="Measure for under a minute and keep the result.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(), show_default="here",
              help="Folder whose .planner/ keeps the calibration.")  # fmt: skip
@json_option
def command(device: str | None, calibrate: bool, out: Path, as_json: bool) -> None:
    """Describe this device and its libraries; with --calibrate, measure what it can do.

    A calibration is what `planner tune` predicts plans with before it measures them. It holds for
    this device, its driver and its threads.
    """
    from planner.measure import calibration
    from planner.run.devices.base import backend

    found = backend(device)
    described = found.describe()
    root = out / ".planner"
    if calibrate:
        say("measuring products, convolution, attention, traffic and launches")
        say(f"kept in {calibration.store(calibration.calibrate(found), root)}")
    kept = calibration.stored(described, root)
    if as_json:
        emit_json({"device": described, "speeds": kept.speeds if kept else None})
    else:
        click.echo(_text(described, kept))


def _text(device: Device, kept: Calibration | None) -> str:
    rows = [
        ("device", device.name),
        ("kind", device.kind),
        ("threads", str(device.threads)),
        ("memory", f"{device.memory_bytes / 2**30:.1f} GiB"),
        ("features", ", ".join(device.features) or "none"),
        ("libraries", ", ".join(f"{k} {v}" for k, v in sorted(device.libraries.items()))),
        *_speeds(kept),
    ]
    return table(("", ""), rows).lstrip("\n ")


def _speeds(kept: Calibration | None) -> list[tuple[str, str]]:
    if kept is None:
        return [("speeds", "not measured here: planner doctor --calibrate")]
    speeds: Any = kept.speeds
    products = [(f"{name} products", f"{value / 1e12:.3g} TFLOP/s")
                for name, value in speeds.products.items()]  # fmt: skip
    return [
        *products,
        ("convolution", f"{speeds.convolution:.2f} of that"),
        ("attention", f"{speeds.attention['']:.2f} of that"),
        ("traffic", f"{speeds.bandwidth / 1e9:.3g} GB/s"),
        ("a kernel's start", f"{speeds.ramp * 1e6:.2g} µs"),
        ("a launch", f"{speeds.launch * 1e6:.2g} µs"),
    ]
