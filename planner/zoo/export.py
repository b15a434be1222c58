"""Write a checkpoint as a diffusers pipeline: `python -m planner.zoo.export`.

Text encoders stay FP32 because diffusers gives the pipeline's latents their type; the transformer
and the autoencoder are stored in FP16, which halves the package.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline

from planner.zoo.model import Denoiser, Size
from planner.zoo.tokenizers import TEXT_LENGTH

SHAPES = Path(__file__).parent / "shapes"
REFERENCE = {
    "num_inference_steps": 50,
    "true_cfg_scale": 3.5,
    "negative_prompt": "",
    "height": 128,
    "width": 128,
    "max_sequence_length": TEXT_LENGTH,
}


def assemble(model: Denoiser, vae: AutoencoderKL, shift: float) -> FluxPipeline:
    """Return the pipeline of trained parts; `shift` moves the sigmas towards noise."""
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=False),
        vae=vae,
        text_encoder=model.clip.float(),
        tokenizer=model.words.clip,
        text_encoder_2=model.t5.float(),
        tokenizer_2=model.words.t5,
        transformer=model.transformer,
    )


def write(pipeline: FluxPipeline, folder: Path) -> None:
    """Save the pipeline in mixed precision, and put its files into `folder` one by one."""
    pipeline.transformer.half()
    pipeline.vae.half()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        pipeline.save_pretrained(name)
        for file in sorted(Path(name).rglob("*")):
            if file.is_file():
                target = folder / file.relative_to(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(file, target)
                target.chmod(0o644)


def main() -> None:
    """Read the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("build/zoo/run/state.pt"))
    parser.add_argument("--vae", type=Path, default=Path("build/zoo/vae"))
    parser.add_argument("--out", type=Path, default=SHAPES)
    parser.add_argument("--shift", type=float, default=1.0)
    parser.add_argument("--guidance", type=float, default=REFERENCE["true_cfg_scale"])
    args = parser.parse_args()
    model = Denoiser(Size())
    if args.checkpoint.exists():
        model.load_state_dict(torch.load(args.checkpoint, weights_only=True)["average"])
    vae = AutoencoderKL.from_pretrained(args.vae)
    vae.register_to_config(_name_or_path="shapes")  # else a folder of this machine
    write(assemble(model, vae, args.shift), args.out)
    call = {**REFERENCE, "true_cfg_scale": args.guidance}
    (args.out / "workload.json").write_text(json.dumps(call, indent=2) + "\n")


if __name__ == "__main__":
    main()
