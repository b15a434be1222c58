"""Writes claims.md: `python reports/claims.py`, or `make claims`.

Numbers that talks, papers and vendors state, beside what planner computes from the architecture and
the fitted roofline alone. Nothing here was measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from planner.case.work import Work
from planner.catalog.devices import card
from planner.passes import registry
from planner.prediction.estimate import estimate
from planner.prediction.meta import work_of
from planner.prediction.speeds import Stack
from planner.prediction.summary import products

HERE = Path(__file__).parent
GB = 1e9


class Claim(NamedTuple):
    """What somebody states, where, what planner computes, and why they differ or do not."""

    says: str
    source: str
    stated: float
    computed: float
    unit: str
    reason: str


def put(work: Work, **passes: dict[str, Any]) -> Work:
    """Return the work after the effects of passes in the order given."""
    for name, values in passes.items():
        work = registry.get(name).effect(work, registry.settings_of(name, values), None)
    return work


def seconds(work: Work, device: str, stack: Stack = "eager") -> float:
    """Return the predicted seconds of one call."""
    return estimate(work, card(device), stack).seconds


def denoise_tflops(work: Work) -> float:
    """Return the denoiser's products over all forwards, in TFLOPs."""
    return products([phase for phase in work.phases if phase.name == "denoise"])


def computed() -> Iterator[Claim]:
    """Yield every claim with what planner computes."""
    qwen = work_of("qwen-image", height=1328, width=1328, steps=50)
    flux = work_of("flux.1-dev", height=1024, width=1024, steps=50)
    yield Claim("Qwen-Image, 1328×1328, 50 steps with CFG", "LinCa", 12917.56,
                denoise_tflops(qwen), "TFLOPs", "24 text tokens, as the paper's count implies")
    yield Claim("FLUX.1-dev, 1024×1024, 50 steps", "TaylorSeer's protocol", 3719.5,
                denoise_tflops(flux), "TFLOPs", "the same protocol")
    yield Claim("Qwen-Image, 1328×1328, 50 steps on an H20", "LinCa", 127.0,
                seconds(qwen, "h20"), "s", "no row of this pair was in the fit")
    sd3 = work_of("sd3.5-large", height=1024, width=1024)
    denoiser = next(part for part in sd3.parts if part.phase == "denoise")
    small = put(sd3, fp8_storage={})
    eight = next(part for part in small.parts if part.phase == "denoise")
    yield Claim("SD3.5-Large needs 18 GB", "Stability AI", 18.0, denoiser.bytes / GB, "GB",
                "ours is the denoiser's weights alone; theirs counts activations")
    yield Claim("SD3.5-Large in FP8 needs 11 GB", "Stability AI", 11.0, eight.bytes / GB, "GB",
                "weights alone; adaptive norms stay in 16 bit here, TensorRT converts more")
    yield from _stacks()
    yield Claim("16 of 50 steps skipped", "NVIDIA on FLUX.2 (\"roughly 2×\")", 2.0, 50 / 34, "×",
                "a step that is skipped saves at most itself: 50 / 34; 30 % less latency is 1.43×")


def _stacks() -> Iterator[Claim]:
    """Yield the claims about stacks of passes on one device."""
    wan = work_of("wan2.2-t2v-a14b", height=720, width=1280, frames=81)
    mixed = put(wan, fp8_dynamic={}, compile_blocks={})
    saved = 1 - seconds(mixed, "h100-sxm", "compiled") / seconds(wan, "h100-sxm")
    yield Claim("FP8 with BF16 on Hopper: latency", "Adobe Firefly (TensorRT)", -60.0,
                -100 * saved, "%", "another model: Wan2.2-A14B at 720p with FP8 linear layers; "
                "attention, which stays in BF16, is most of its time at this length")
    flux = work_of("flux.1-dev", height=1024, width=1024, steps=28)
    four = put(flux, nvfp4={}, compile_blocks={})
    yield Claim("NVFP4 against FP16 on RTX 50", "NVIDIA (\"up to\"); ComfyUI says 2×", 3.0,
                seconds(flux, "rtx-5090") / seconds(four, "rtx-5090", "compiled"), "×",
                "whole pipeline; attention and modulations stay in 16 bit")
    two = work_of("flux.2-dev", height=1024, width=1024, steps=50)
    stack = put(two, nvfp4={}, compile_blocks={}, cuda_graphs={})
    before, after = seconds(two, "h200"), seconds(stack, "b200", "compiled") / (50 / 34)
    yield Claim("FLUX.2 on one B200, full stack against an H200", "NVIDIA", 6.3,
                before / after, "×", "16 of 50 steps skipped on top of NVFP4 and graphs")
    yield Claim("FLUX.2, B200 against H200 in BF16", "NVIDIA", 1.7,
                before / seconds(two, "b200"), "×", "a B200 had two rows in the fit")


def page(claims: list[Claim]) -> str:
    """Return the page in Markdown."""
    rows = [
        f"| {one.says} | {one.source} | {one.stated:,.6g} {one.unit} | "
        f"{_short(one.computed)} {one.unit} | {_difference(one)} | {one.reason} |"
        for one in claims
    ]  # fmt: skip
    return "\n".join([
        "# What others state, and what planner computes", "",
        "By `make claims`. Operations are exact; seconds and ratios are predictions of the",
        "roofline ([how far they are off](predictor.md)); memory is weights. Nothing here was",
        "measured.", "",
        "| claim | source | stated | computed | difference | why |", "|---|---|---|---|---|---|",
        *rows, "",
    ])  # fmt: skip


def _short(value: float) -> str:
    return f"{value:,.2f}" if abs(value) > 1000 else f"{value:.3g}"


def _difference(one: Claim) -> str:
    """Return points between percentages, and a share of anything else."""
    if one.unit == "%":
        return f"{one.computed - one.stated:+.0f} points"
    return f"{one.computed / one.stated - 1:+.2%}"


if __name__ == "__main__":
    (HERE / "claims.md").write_text(page(list(computed())), encoding="utf-8")
