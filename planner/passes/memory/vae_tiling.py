"""Decode the image in overlapping tiles.

What it does: the VAE decodes one square of the latents after the other and blends the seams, so
that only one tile's activations are in memory at a time.
When it helps: large images on small cards, where the decoder's activations are the peak; the peak
falls with the tile's share of the image's area.
What it costs: the overlaps are decoded twice (about 1.3 times the work at a quarter of overlap).
When not: images no larger than a tile, where nothing happens. Norms and attention see one tile
only: tones may shift from tile to tile.
Source: diffusers' AutoencoderMixin.enable_tiling and the tiled_decode of each VAE.

diffusers' own tile is the size that a VAE was trained at (1024 pixels for SDXL and FLUX.1), which
cuts nothing of the usual image; here its side is a setting.
"""

from __future__ import annotations

from typing import Any

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.case.work import Operation, Phase, Work
from planner.case.workload import Workload
from planner.hooks.decoder import COUNT, count_decodes
from planner.passes.base import (
    Context,
    Domain,
    Family,
    Fidelity,
    Need,
    Pass,
    Settings,
    Stage,
    Statistics,
    Undo,
    knob,
)

SIDES = (256, 512, 1024)
"""The sides of a tile that a search tries, in pixels."""

TILED = frozenset({
    "AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderKLHunyuanImage", "AutoencoderDC",
    "AutoencoderKLQwenImage", "AutoencoderKLWan", "AutoencoderKLHunyuanVideo",
    "AutoencoderKLHunyuanVideo15", "AutoencoderKLLTXVideo", "AutoencoderKLLTX2Video",
    "AutoencoderKLMochi", "AutoencoderKLCosmos", "AutoencoderKLCogVideoX",
})  # fmt: skip
"""VAEs of diffusers 0.42.1 whose tiles are squares with the attributes that are set here."""

_SIZES = ("tile_sample_min_size", "tile_sample_min_height", "tile_sample_min_width")


class VaeTilingSettings(Settings):
    """The tiles."""

    tile: int = knob(512, "side of a tile in pixels", choices=SIDES, least=32, most=8192)
    overlap: float = knob(0.25, "share of a tile that the next one covers too", least=0.0, most=0.5)


def geometry(vae: Any, settings: VaeTilingSettings) -> dict[str, Any]:
    """Return the VAE's attributes for these tiles, of those that it has."""
    own, tile = vars(vae), settings.tile
    found: dict[str, Any] = {name: tile for name in _SIZES if name in own}
    for name in tuple(found):
        latent = name.replace("sample", "latent")
        if latent in own:
            found[latent] = tile // _scale(own[name], own[latent])
    stride = int(tile * (1 - settings.overlap))
    found |= {n: stride for n in own if n in ("tile_sample_stride_height",
                                              "tile_sample_stride_width")}  # fmt: skip
    return found | {n: settings.overlap for n in own if n.startswith("tile_overlap_factor")}


def _scale(sample: Any, latent: int) -> int:
    side: int = sample[0] if isinstance(sample, list | tuple) else sample
    return max(1, round(side / latent))


def apply(pipeline: Any, settings: VaeTilingSettings, context: Context) -> Undo:
    """Turn tiling on with these tiles, and count them."""
    vae = pipeline.vae
    new = geometry(vae, settings) | {"use_tiling": True}
    before = {name: vars(vae)[name] for name in new}
    vars(vae).update(new)
    stop = count_decodes(vae, context.statistics, context.clock)

    def undo() -> None:
        stop()
        vars(vae).update(before)

    return undo


def lengths(side: int, settings: VaeTilingSettings) -> list[int]:
    """Return how much of one side each tile covers."""
    stride = max(1, int(settings.tile * (1 - settings.overlap)))
    return [min(settings.tile, side - start) for start in range(0, side, stride)]


def effect(work: Work, settings: VaeTilingSettings, telemetry: Telemetry | None) -> Work:
    """Decode every tile with its overlap, and hold one at a time."""
    if max(work.height, work.width) <= settings.tile:
        return work
    tall, wide = lengths(work.height, settings), lengths(work.width, settings)
    whole, tiles = work.height * work.width, len(tall) * len(wide)
    area = sum(tall) * sum(wide) / whole
    squared = sum((a * b / whole) ** 2 for a in tall for b in wide)

    def tiled(op: Operation) -> Operation:
        # Attention compares each position with all others of its tile.
        share = squared if op.kind == "attention" else area
        moved = (op.bytes - op.weights) * area + op.weights * tiles
        more = {"bytes": moved, "weights": op.weights * tiles, "launches": op.launches * tiles}
        return op.model_copy(update={"flops": op.flops * share, **more})

    def phase_of(phase: Phase) -> Phase:
        if phase.name != "decode":
            return phase
        peak = phase.peak * max(tall) * max(wide) / whole
        operations = tuple(map(tiled, phase.operations))
        return phase.model_copy(update={"operations": operations, "peak": peak})

    return work.mapped(phase_of)


def observe(settings: VaeTilingSettings, statistics: Statistics, workload: Workload) -> str | None:
    """Answer a sentence if the image was decoded in one piece."""
    if statistics.get(COUNT) != 1:
        return None
    return f"vae_tiling decoded the image in one piece of at most {settings.tile} px"


def narrow(case: Case, telemetry: Telemetry | None) -> dict[str, Domain]:
    """Return the tiles that are smaller than the image."""
    side = max(case.workload.size)
    return {"tile": Domain(choices=tuple(one for one in SIDES if one < side))} if side else {}


def unfit(case: Case, settings: VaeTilingSettings) -> str | None:
    """Answer a sentence if the image is no larger than a tile."""
    height, width = case.workload.size
    if not 0 < max(height, width) <= settings.tile:
        return None
    return f"vae_tiling cuts nothing of {width}×{height} px with tiles of {settings.tile} px"


def _tiled(case: Case) -> str | None:
    vae = case.model.components.get("vae")
    if vae is not None and vae.class_name in TILED:
        return None
    had = "none" if vae is None else vae.class_name
    return f"vae_tiling needs a VAE that decodes in square tiles; {case.model.pipeline} has {had}"


def _large(case: Case) -> str | None:
    height, width = case.workload.size
    if max(height, width) > SIDES[0] or not max(height, width):
        return None
    return f"vae_tiling needs an image larger than {SIDES[0]} px; this call draws {width}×{height}"


_SOURCE = "diffusers AutoencoderMixin.enable_tiling; AutoencoderKL.tiled_decode"

PASS = Pass(
    name="vae_tiling",
    family=Family.MEMORY,
    stage=Stage.OFFLOAD,
    fidelity=Fidelity.APPROXIMATE,
    source=_SOURCE,
    settings=VaeTilingSettings,
    owns=("vae.tiles",),
    needs=(Need(_tiled, _SOURCE), Need(_large, _SOURCE)),
    effect=effect,
    apply=apply,
    observe=observe,
    narrow=narrow,
    unfit=unfit,
    seeds=({"tile": 512}, {"tile": 256}),
    batch_invariant=True,
)
