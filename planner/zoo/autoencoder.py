"""Train the autoencoder: `python -m planner.zoo.autoencoder --part decoder --minutes 25`.

The latents are given (`patches.py`), so that the decoder learns to draw them and the encoder to
find them, each for itself. The decoder sees crops of 64 pixels, a quarter of the cost.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.utils.data import Dataset

from planner.measure.lpips import Lpips
from planner.zoo.patches import LATENT_CHANNELS, PATCH, ahead, code, encode, pictures

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


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Two random crops of each of `count` pictures, on the patch grid, with their latents."""

    def __init__(self, seed: int, count: int) -> None:
        """Take the seed: another one gives other scenes."""
        self.first, self.count, self.known = (seed + 1) * 10**6, count, code()

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the crops (n, 3, CROP, CROP) of a step and their latents (n, 12, 8, 8)."""
        images = pictures(self.first + step * self.count, self.count)
        rng = torch.Generator().manual_seed(self.first + step)
        seen, codes = [], []
        wide = CROP // PATCH
        for image, latent in zip(images, encode(images, self.known), strict=True):
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


@dataclass(frozen=True)
class Stretch:
    """What to train for how long; `seed` picks the scenes, `pictures` of them a step."""

    part: str = "decoder"
    minutes: float = 25.0
    rate: float = 1e-3
    seed: int = 0
    pictures: int = 2
    drawers: int = 0
    device: str = "cpu"


def train(folder: Path, start: Path | None, stretch: Stretch) -> None:
    """Train one part for a stretch of wall time, going on from `folder`, or else from `start`."""
    torch.manual_seed(stretch.seed)
    known_weights = folder if folder.exists() else start
    vae = AutoencoderKL.from_pretrained(known_weights) if known_weights else build()
    vae = vae.float().to(stretch.device)
    trained = vae.decoder if stretch.part == "decoder" else vae.encoder
    optimizer = torch.optim.AdamW(trained.parameters(), lr=stretch.rate, betas=(0.9, 0.99))
    # the differentiable network inside the metric, in which LPIPS is a loss
    metric = Lpips()._mean.to(stretch.device)
    mean = torch.zeros((), device=stretch.device)
    begun = time.time()
    crops = Crops(stretch.seed, stretch.pictures)
    for step, drawn in enumerate(ahead(crops, 0, 1, stretch.drawers)):
        begun = time.time() if step == 0 else begun  # starting the drawers does not count
        share = (time.time() - begun) / (stretch.minutes * 60)
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = pace(share, stretch.rate)
        batch = drawn[0].to(stretch.device), drawn[1].to(stretch.device)
        if stretch.part == "encoder":
            loss = encoder_loss(vae, batch)
        else:
            loss = decoder_loss(vae, batch, metric if share > 0.3 else None)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        mean = torch.lerp(mean, loss.detach(), 1.0 if step == 0 else 0.02)
        if step % 50 == 0:
            print(f"{step} steps, {time.time() - begun:.0f} s, loss {mean:.4f}", flush=True)
    vae.save_pretrained(folder)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("decoder", "encoder"), default="decoder")
    parser.add_argument("--minutes", type=float, default=Stretch.minutes)
    parser.add_argument("--rate", type=float, default=Stretch.rate)
    parser.add_argument("--folder", type=Path, default=Path("build/zoo/vae"))
    parser.add_argument("--start", type=Path, help="autoencoder folder to start from")
    parser.add_argument("--seed", type=int, default=0, help="another one to go on: other scenes")
    parser.add_argument("--pictures", type=int, default=Stretch.pictures, help="pictures a step")
    parser.add_argument("--drawers", type=int, default=0, help="processes that draw pictures")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    given = vars(parser.parse_args())
    torch.set_num_threads(given.pop("threads"))
    train(given.pop("folder"), given.pop("start"), Stretch(**given))


if __name__ == "__main__":
    main()
