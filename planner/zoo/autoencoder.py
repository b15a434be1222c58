"""Train the autoencoder: `python -m planner.zoo.autoencoder --part decoder --minutes 25`.

The latents are given (`patches.py`), so that the decoder learns to draw them and the encoder to
find them, each for itself. The decoder sees crops of 64 pixels, a quarter of the cost.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from planner.measure.lpips import Lpips
from planner.zoo.patches import LATENT_CHANNELS, PATCH, code, encode, pictures

CROP = 64


def build() -> AutoencoderKL:
    """Return an untrained autoencoder: sides 8 times smaller, LATENT_CHANNELS channels."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=128,
        scaling_factor=1.0,
        shift_factor=0.0,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    for name, module in vae.named_modules():
        if name.endswith(".conv2"):
            nn.init.zeros_(module.weight)  # every residual block starts as its shortcut
    return vae


def crops(images: Tensor, latents: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return two random crops of each picture, on the patch grid, with their latents."""
    seen, codes = [], []
    wide = CROP // PATCH
    for image, latent in zip(images, latents, strict=True):
        for _ in range(2):
            y, x = torch.randint(0, latent.shape[-1] - wide + 1, (2,), generator=rng).tolist()
            codes.append(latent[:, y : y + wide, x : x + wide])
            y, x = y * PATCH, x * PATCH
            seen.append(image[:, y : y + CROP, x : x + CROP])
    return torch.stack(seen), torch.stack(codes)


def edges(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the differences of neighbouring pixels, along x and along y."""
    return image[..., :, 1:] - image[..., :, :-1], image[..., 1:, :] - image[..., :-1, :]


def decoder_loss(
    vae: AutoencoderKL, batch: tuple[Tensor, Tensor], metric: nn.Module | None
) -> Tensor:
    """Return absolute error, edges and, with a metric, LPIPS of decoded latents."""
    image, latent = batch
    out: Tensor = vae.decode(latent + 0.03 * torch.randn_like(latent)).sample
    loss: Tensor = (out - image).abs().mean()
    for mine, true in zip(edges(out), edges(image), strict=True):
        loss = loss + 0.25 * (mine - true).abs().mean()
    if metric is None:
        return loss
    seen: Tensor = metric(out, image).mean()
    return loss + 0.25 * seen


def encoder_loss(vae: AutoencoderKL, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the squared error of the encoder's mean, and of a log variance of -12."""
    found = vae.encode(batch[0]).latent_dist
    narrow: Tensor = 1e-3 * (found.logvar + 12).square().mean()
    return nn.functional.mse_loss(found.mean, batch[1]) + narrow


def pace(share: float, peak: float) -> float:
    """Return the learning rate at a share of the time: short warm-up, then cosine to 2 %."""
    warm = min(1.0, share / 0.03 + 0.02)
    return peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))


def train(
    folder: Path, start: Path | None, part: str, minutes: float, rate: float, seed: int
) -> None:
    """Train one part for a stretch of wall time, going on from `folder`, or else from `start`.

    Another seed gives other scenes: change it to go on.
    """
    torch.manual_seed(seed)
    known = code()
    known_weights = folder if folder.exists() else start
    vae = AutoencoderKL.from_pretrained(known_weights) if known_weights else build()
    vae = vae.float()
    trained = vae.decoder if part == "decoder" else vae.encoder
    optimizer = torch.optim.AdamW(trained.parameters(), lr=rate, betas=(0.9, 0.99))
    # the differentiable network inside the metric, in which LPIPS is a loss
    metric = Lpips()._mean
    begun, step, mean, first = time.time(), 0, 0.0, (seed + 1) * 10**6
    rng = torch.Generator().manual_seed(first)
    while (share := (time.time() - begun) / (minutes * 60)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = pace(share, rate)
        images = pictures(first + step * 2, 2)
        batch = crops(images, encode(images, known), rng)
        if part == "encoder":
            loss = encoder_loss(vae, batch)
        else:
            loss = decoder_loss(vae, batch, metric if share > 0.5 else None)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        step += 1
        mean = loss.item() if step == 1 else 0.98 * mean + 0.02 * loss.item()
        if step % 50 == 0:
            print(f"{step} steps, {time.time() - begun:.0f} s, loss {mean:.4f}", flush=True)
        if step % 250 == 0:
            vae.save_pretrained(folder)
    vae.save_pretrained(folder)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("decoder", "encoder"), default="decoder")
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--folder", type=Path, default=Path("build/zoo/vae"))
    parser.add_argument("--start", type=Path, help="autoencoder folder to start from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.folder, args.start, args.part, args.minutes, args.rate, args.seed)


if __name__ == "__main__":
    main()
