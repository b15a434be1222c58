"""Measure the shipped model: `python -m planner.zoo.evaluate --out build/zoo/eval`.

Three parts: the caption score on held-out captions, the LPIPS of fewer steps against the reference
call at the same seeds, and a sheet of samples. Each picture has its own seed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from numpy.typing import NDArray
from PIL import Image

from planner.measure.captions import check
from planner.measure.lpips import Lpips
from planner.zoo.export import SHAPES
from planner.zoo.world import captions

Pictures = NDArray[np.uint8]


def load(folder: Path, shift: float | None = None) -> tuple[FluxPipeline, dict[str, Any]]:
    """Return the pipeline in FP32 and its reference call; `shift` overrides the scheduler's."""
    pipe = FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if shift is not None:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, shift=shift)
    return pipe, json.loads((folder / "workload.json").read_text())


def render(
    pipe: FluxPipeline, prompts: list[str], call: dict[str, Any], batch: int, seed: int = 0
) -> Pictures:
    """Return one picture a prompt, (n, height, width, 3); prompt i gets seed `seed` + i."""
    out = []
    for at in range(0, len(prompts), batch):
        part = prompts[at : at + batch]
        generators = [torch.Generator().manual_seed(seed + at + i) for i in range(len(part))]
        how = {**call, "negative_prompt": [call["negative_prompt"]] * len(part)}
        found = pipe(part, **how, generator=generators, output_type="np").images
        out.append((np.asarray(found) * 255).round().astype(np.uint8))
    return np.concatenate(out)


def score(
    pipe: FluxPipeline, call: dict[str, Any], n: int, kind: str | None, batch: int
) -> dict[str, float | int]:
    """Return how many of `n` certification captions the pictures meet."""
    prompts = captions("certify", n, seed=1, kind=kind)
    images = render(pipe, prompts, call, batch, seed=10_000)
    passed = [check(image, text).passed for image, text in zip(images, prompts, strict=True)]
    return {"n": n, "passed": sum(passed), "share": sum(passed) / n}


def curve(
    pipe: FluxPipeline, call: dict[str, Any], n: int, steps: list[int], batch: int
) -> dict[str, float]:
    """Return the mean LPIPS of fewer steps against the reference call, at the same seeds."""
    prompts = captions("certify", n, seed=2)
    metric = Lpips()
    reference = list(render(pipe, prompts, call, batch))
    out = {}
    for count in steps:
        fewer = list(render(pipe, prompts, {**call, "num_inference_steps": count}, batch))
        out[str(count)] = float(np.mean(metric.distances(reference, fewer)))
    return out


def sheet(images: Pictures, columns: int) -> Image.Image:
    """Return pictures side by side in rows."""
    starts = range(0, len(images), columns)
    rows = [np.concatenate(list(images[at : at + columns]), 1) for at in starts]
    return Image.fromarray(np.concatenate(rows, 0))


def seconds(pipe: FluxPipeline, call: dict[str, Any]) -> float:
    """Return the median seconds of three reference calls for one picture."""
    taken = []
    for _ in range(3):
        begun = time.perf_counter()
        render(pipe, ["a red circle"], call, batch=1)
        taken.append(time.perf_counter() - begun)
    return sorted(taken)[1]


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=SHAPES)
    parser.add_argument("--out", type=Path, default=Path("build/zoo/eval"))
    parser.add_argument("--one", type=int, default=200, help="one-object captions")
    parser.add_argument("--all", type=int, default=200, help="captions of all kinds")
    parser.add_argument("--curve", type=int, default=16, help="prompts of the LPIPS curve")
    parser.add_argument("--steps", type=int, nargs="*", default=[25, 18, 12, 8, 6])
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--shift", type=float)
    parser.add_argument("--reference-steps", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=8, help="pictures at a time")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pipe, call = load(args.folder, args.shift)
    pipe.to(args.device)
    call["true_cfg_scale"] = args.guidance or call["true_cfg_scale"]
    call["num_inference_steps"] = args.reference_steps or call["num_inference_steps"]
    result: dict[str, Any] = {"call": call, "shift": pipe.scheduler.config.shift}
    if args.one:
        result["one"] = score(pipe, call, args.one, "one", args.batch)
    if args.all:
        result["all"] = score(pipe, call, args.all, None, args.batch)
    if args.curve:
        result["curve"] = curve(pipe, call, args.curve, args.steps, args.batch)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "figures.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    samples = render(pipe, captions("certify", 24, seed=3), call, args.batch)
    sheet(samples, 8).save(args.out / "samples.png")
    print(f"one picture: {seconds(pipe, call):.1f} s")


if __name__ == "__main__":
    main()
