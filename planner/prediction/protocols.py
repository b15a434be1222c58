"""What published rows ran, or mean by memory, otherwise than a diffusers pipeline does.

Facts about the sources' code and tools, in words that their pages print or their code shows; no
number here was fitted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

from planner.case.work import Part, Phase, Work
from planner.catalog.entry import Entry
from planner.prediction.components import build
from planner.prediction.memory import Margin, peak_within
from planner.prediction.published import Row

Meter = Literal["process", "device", "weights"]
"""What a figure of memory counts: what torch allocated, all that the driver shows, weights."""

_WEIGHTS_ALONE = ("huggingface.co/blog/quanto-diffusers",)
"""The same figure for batches of one and of four, equal to the components' weights."""

_SINCE_LOADING = ("sayakpaul/diffusers-torchao", "huggingface.co/datasets/diffusers/benchmarks")
"""The peak is never reset: weights lay on the device in 16 bits before they were quantized there.
Up to a batch of four, rows of FLUX.1 in 8 bits print what its 16-bit weights take."""

_STREAMED = ("sgl-project/sglang",)
"""Text encoders rest on the host and are streamed layer by layer, a twentieth at once."""

_FUSED = re.compile(r"fuse_qkv=True|fused qkv")
_PROJECTIONS = re.compile(r"(to_[qkv]|add_[qkv]_proj)\.(weight|bias)$")
_WEIGHTS = re.compile(r"weights ([\d.]+) GiB")
_WHICH = re.compile(r"TE([\d,]+)")


def meter(row: Row) -> Meter:
    """Return what a row's figure of memory counts."""
    if any(name in row.source for name in _WEIGHTS_ALONE):
        return "weights"
    return "device" if "device" in row.unit or "smi" in row.unit else "process"


def printed(row: Row, work: Work, loaded: float, room: float, margin: Margin) -> float:
    """Return the bytes that a row's tool would print for a work.

    `loaded` is what the weights took before anything was quantized, `room` the device's memory.
    """
    kind = meter(row)
    if kind == "weights":
        return sum(part.bytes for part in work.parts)
    old = margin.old if row.stack == "old" else 1.0
    # What torch counts as allocated is tensors: neither its context nor what its pool has lost.
    lost = margin if kind == "device" else Margin(context=0.0, fragments=0.0)
    found = peak_within(work, lost.model_copy(update={"old": old}), room).total
    whole = row.offload == "none" and any(name in row.source for name in _SINCE_LOADING)
    return max(found, loaded if whole else 0.0)


def wans_own(row: Row) -> bool:
    """Tell whether a row ran the code of Wan's authors: only that has options by these names."""
    return "Wan-Video/" in row.source or "Wan official" in row.note


def adapted(row: Row, work: Work, entry: Entry, before: Work) -> Work:
    """Return the work as the row's code had it in memory; `before` is the work in 16 bits."""
    if any(name in row.source for name in _STREAMED):
        work = _parts(work, "encode", lambda p: {"place": "streamed", "window": p.bytes / 20})
    if "t5_cpu" in row.offload:
        work = _parts(work, "encode", lambda p: {"place": "streamed", "window": 0.0})
    if wans_own(row):
        work = _as_wan_has_it(row, work)
    names = _quantized_encoders(row, before)
    work = _parts(work, "encode", lambda p: {"bytes": p.bytes / 2} if p.name in names else {})
    if _FUSED.search(row.note):
        more = 1 + fused_share(entry)
        work = _parts(work, "denoise", lambda p: {"bytes": p.bytes * more})
    return work


def fused_share(entry: Entry) -> float:
    """Return the share of a denoiser's weights that fused projections hold a second time.

    Source: diffusers' fuse_projections keeps the single projections beside the fused one.
    """
    part = next(one for one in entry.components if one.phase == "denoise")
    sizes = {name: p.numel() for name, p in build(part, entry.dtype).named_parameters()}
    doubled = sum(size for name, size in sizes.items() if _PROJECTIONS.search(name))
    return float(doubled / sum(sizes.values()))


def _parts(work: Work, phase: str, change: Callable[[Part], dict[str, Any]]) -> Work:
    parts = tuple(
        part.model_copy(update=change(part)) if part.phase == phase else part
        for part in work.parts
    )  # fmt: skip
    return work.model_copy(update={"parts": parts})


def _as_wan_has_it(row: Row, work: Work) -> Work:
    """Keep the denoiser in float32 unless it is converted; 2.2 holds a modulation a token.

    Text encoders leave one device after use unless it is told otherwise.
    Source: Wan-Video/Wan2.1 generate.py (offload_model), which loads a float32 checkpoint and
    computes under autocast; Wan-Video/Wan2.2 wan/modules/model.py, where six float32 vectors a
    token come from the time embedding, and every block adds its own to them.
    """
    if row.offload == "none":
        work = _parts(work, "encode", lambda part: {"place": "host"})
    if "convert_model_dtype" not in row.offload:
        work = _parts(work, "denoise", lambda part: {"bytes": part.parameters * 4})
    if "Wan2.2" not in row.model:
        return work

    def modulated(phase: Phase) -> Phase:
        attention = (op.bytes / op.launches for op in phase.operations if op.kind == "attention")
        hidden = max(attention, default=0.0) / 4  # queries, keys, values and output in 16 bits
        held = 2 * 6 * 2 * hidden if phase.name == "denoise" else 0.0
        return phase.model_copy(update={"peak": phase.peak + held})

    return work.mapped(modulated)


def _quantized_encoders(row: Row, before: Work) -> list[str]:
    """Return the text encoders that a row says, or shows by its weights, to be in 8 bits."""
    parts = [part for part in before.parts if part.phase == "encode"]
    names = [part.name for part in sorted(parts, key=lambda part: part.bytes)]
    if row.precision in ("bf16", "fp16", "fp32") or not names:
        return []
    said = _WEIGHTS.search(row.note)
    if said and float(said[1]) * 2**30 < 0.6 * sum(part.bytes for part in before.parts):
        return names
    which = _WHICH.search(row.note)
    if which:
        wanted = which[1].strip(",").split(",")
        return [n for n in names if (n.rpartition("_")[2] if n[-1].isdigit() else "1") in wanted]
    if "text encoder" in row.note:
        return names
    return names[-1:] if "T5" in row.note else []
