"""How fast a catalogued device is: datasheet and measured products, times what the fit found."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from statistics import median
from typing import Literal

from pydantic import ConfigDict, ValidationError

from planner.case.noun import Noun
from planner.catalog.devices import Card, cards
from planner.errors import InvalidFile
from planner.prediction.memory import Margin
from planner.prediction.roofline import Speeds

FITTED = Path(__file__).parent / "fitted.json"

_USUAL_WATTS = 1.6
"""Watts for a rated TFLOPS: the median board of the catalogue has about as many."""

Stack = Literal["eager", "compiled", "engine", "old"]
"""What runs the pipeline: diffusers, torch.compile, an engine's own kernels, or torch before 2."""

RestsOn = Literal["this device", "its family", "datasheet"]
"""What a prediction rests on: fitted on this device, on its architecture, or neither."""


class Constants(Noun):
    """What `planner.prediction.fit` found; shares are of the best product measured on a device.

    linear, convolution: share that a denoiser's layers reach. flash2, flash3, sage: share of
    attention by kernel; hopper: what flash2 keeps of it on chips whose products outran it, early
    where it does not run, before Ampere.
    compiled, engine, old: what those stacks gain on products. bandwidth: share of the rated one.
    cached, launch, launch_compiled, ramp, call, step: as in `Speeds`. float8, int8, float4: share
    of those units' rated speed that quantized layers reach. link: bytes a second from the host.
    power: exponent with which products follow the watts that a board has for its rated speed.
    desktop: share of the host's seconds a launch and a step that desktops take, where GeForce sits.
    step_fused: share of a step's seconds that are left where a compiler or an engine runs it.
    devices: what single devices reach of all this, by id. context: bytes that a device's runtime
    takes. fragments: share of the activations that the allocator loses; old_copies: how many times
    the activations a pipeline before torch 2 holds. caches: anchors.
    """

    linear: float = 0.85
    convolution: float = 0.6
    flash2: float = 0.7
    hopper: float = 0.7
    early: float = 0.7
    flash3: float = 0.8
    sage: float = 1.1
    compiled: float = 1.05
    engine: float = 1.05
    old: float = 0.8
    bandwidth: float = 0.8
    cached: float = 2.0
    launch: float = 6e-6
    launch_compiled: float = 3e-6
    ramp: float = 3e-6
    call: float = 0.05
    step: float = 2e-3
    float8: float = 0.6
    int8: float = 0.5
    float4: float = 0.5
    link: float = 20e9
    power: float = 0.2
    desktop: float = 0.7
    step_fused: float = 0.7
    devices: dict[str, float] = {}
    context: float = 0.3e9
    fragments: float = 0.1
    old_copies: float = 1.5
    caches: dict[str, float] = {}


class Fit(Noun):
    """What the fit's file holds that predictions need: constants, and factors of their error.

    `spread` says by how much a prediction may be off, by what it rests on.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    constants: Constants
    spread: dict[RestsOn, float]


def fitted() -> Constants:
    """Return the committed constants. Raises `InvalidFile` for a damaged file."""
    return fit_of(FITTED).constants


@cache
def fit_of(file: Path) -> Fit:
    """Read what a fit has written. Raises `InvalidFile` for a damaged file."""
    try:
        return Fit.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (ValidationError, ValueError, OSError) as error:
        way_out = "restore the file from the release it came with, or fit again"
        raise InvalidFile(f"{file.name} is damaged", value=str(error), way_out=way_out) from error


def margin(known: Constants, stack: Stack = "eager") -> Margin:
    """Return what is lost of a device's memory beside tensors under a stack."""
    old = known.old_copies if stack == "old" else 1.0
    return Margin(context=known.context, fragments=known.fragments, old=old)


def rests_on(card: Card, known: Constants) -> RestsOn:
    """Say what a prediction for a device rests on."""
    if card.id in known.devices:
        return "this device"
    near = {cards()[name].architecture for name in known.devices}
    return "its family" if card.architecture in near else "datasheet"


def speeds(card: Card, known: Constants, stack: Stack = "eager") -> Speeds:
    """Return how fast a card is under a stack, with 16-bit products in bfloat16 and float16."""
    own = known.devices.get(card.id) or _family(card, known)
    gain = 1.0 if stack == "eager" else float(getattr(known, stack))
    tera = 1e12 * own * gain * _watts(card) ** known.power
    host = known.desktop if _is_desktop(card) else 1.0
    plain = stack in ("eager", "old")
    launch = (known.launch if plain else known.launch_compiled) * host
    step = known.step * (1.0 if plain else known.step_fused) * host
    half = {name: _product(card, name) for name in ("float16", "bfloat16")}
    units = {
        **{name: value * known.linear * tera for name, value in half.items() if value},
        "float32": (card.peaks.float32 or 0) * known.linear * tera,
        "tf32": (card.peaks.tf32 or card.peaks.float32 or 0) * known.linear * tera,
        "float8": (_product(card, "float8") or 0) * known.float8 * tera,
        "int8": (card.peaks.int8 or 0) * known.int8 * tera,
        "float4": (card.peaks.float4 or 0) * known.float4 * tera,
    }
    made = card.capability or (9, 0)
    outran = made in ((9, 0), (10, 0), (10, 3))
    flash2 = known.flash2 * (known.hopper if outran else known.early if made < (8, 0) else 1.0)
    attention = {"": flash2, "flash2": flash2, "math": known.linear, "cudnn": known.flash3,
                 "flash3": known.flash3 if outran else flash2, "sage": known.sage}  # fmt: skip
    return Speeds(
        products={name: value for name, value in units.items() if value},
        convolution=known.convolution / known.linear,
        attention={name: value / known.linear for name, value in attention.items()},
        bandwidth=card.bandwidth * 1e9 * known.bandwidth,
        cached=known.cached, cache=card.cache_mb * 1e6,
        launch=launch, ramp=known.ramp, call=known.call, step=step, link=known.link,
    )  # fmt: skip


def _watts(card: Card) -> float:
    """Return the watts that a board has for a rated TFLOPS of 16 bits, over those of most.

    A board with few of them lowers its clock under a long product.
    """
    rated = card.peaks.float16 or card.peaks.bfloat16
    return card.watts / rated / _USUAL_WATTS if rated else 1.0


def _is_desktop(card: Card) -> bool:
    workstation = "Ada" in card.name or "PRO" in card.name
    return card.name.startswith("RTX") and not workstation


def _family(card: Card, known: Constants) -> float:
    """Return what the devices of a card's architecture reach, else what all reach."""
    near = [v for name, v in known.devices.items()
            if cards()[name].architecture == card.architecture]  # fmt: skip
    return median(near or list(known.devices.values()) or [1.0])


def _product(card: Card, name: str) -> float | None:
    """Return the best product of a type in TFLOPS: measured, or rated times its family's share."""
    seen, rated = getattr(card.gemm, name), getattr(card.peaks, name)
    if seen or not rated:
        return seen or None
    return float(rated) * _measured_share(card.architecture, name)


@cache
def _measured_share(architecture: str, name: str) -> float:
    """Return what was measured of the rated peak, for an architecture or else for all cards."""
    shares = {
        one.id: getattr(one.gemm, name) / getattr(one.peaks, name)
        for one in cards().values() if getattr(one.gemm, name) and getattr(one.peaks, name)
    }  # fmt: skip
    near = [share for key, share in shares.items() if cards()[key].architecture == architecture]
    return float(median(near or shares.values()))
