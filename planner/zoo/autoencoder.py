"""Train the autoencoder: `python -m planner.zoo.autoencoder --minutes 15`.

It learns on crops of 64 pixels, because a fully convolutional model costs a quarter there. With
`--decoder-only` the latents stay as they are and only the decoder gets sharper.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from planner.zoo.world import scene

LATENT_CHANNELS = 8
CROP = 64


def build() -> AutoencoderKL:
    """Return an untrained autoencoder: 8 times smaller sides, LATENT_CHANNELS channels."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=128,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def pictures(first: int, count: int, split: str = "train") -> Tensor:
    """Return `count` pictures from scene seed `first` on, (count, 3, 128, 128) in [-1, 1]."""
    stack = np.stack([scene(split, first + i).image() for i in range(count)])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1


def crops(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Return two random crops of CROP pixels from each picture."""
    found = []
    for image in batch:
        for _ in range(2):
            y, x = torch.randint(0, batch.shape[-1] - CROP + 1, (2,), generator=generator).tolist()
            found.append(image[:, y : y + CROP, x : x + CROP])
    return torch.stack(found).contiguous(memory_format=torch.channels_last)


def perceptual(weights: Path) -> nn.Module:
    """Return LPIPS on the AlexNet backbone stored at `weights`, frozen."""
    import lpips
    from safetensors.torch import load_file

    metric = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    stored = load_file(weights)
    state = metric.net.state_dict()
    for name in state:
        _slice, layer, what = name.split(".")
        state[name] = stored[f"features.{layer}.{what}"]
    metric.net.load_state_dict(state)
    return metric.eval().requires_grad_(False)


def edges(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the differences of neighbouring pixels, along x and along y."""
    return image[..., :, 1:] - image[..., :, :-1], image[..., 1:, :] - image[..., :-1, :]


def loss_of(vae: AutoencoderKL, batch: Tensor, metric: nn.Module | None, frozen: bool) -> Tensor:
    """Return the training loss: absolute error, edges, LPIPS, and a little KL."""
    with torch.set_grad_enabled(not frozen):
        posterior = vae.encode(batch).latent_dist
        latent = posterior.mode() if frozen else posterior.sample()
    out = vae.decode(latent).sample
    loss = (out - batch).abs().mean()
    for mine, true in zip(edges(out), edges(batch), strict=True):
        loss = loss + 0.5 * (mine - true).abs().mean()
    if metric is not None:
        loss = loss + 0.25 * metric(out, batch).mean()
    if not frozen:
        per_value = posterior.kl() / latent[0].numel()
        loss = loss + 1e-4 * per_value.mean()
    return loss


def pace(share: float, peak: float) -> float:
    """Return the learning rate at a share of the time: short warm-up, then cosine to 2 %."""
    warm = min(1.0, share / 0.03 + 0.02)
    return peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))


def measure_scale(vae: AutoencoderKL, count: int = 128) -> tuple[float, float]:
    """Return the mean and the standard deviation of latents over `count` pictures."""
    with torch.no_grad():
        latents = vae.encode(pictures(10**8, count)).latent_dist.mode()
    return float(latents.mean()), float(latents.std())


def save(vae: AutoencoderKL, folder: Path) -> None:
    """Write the autoencoder in FP32 with its measured shift and scale."""
    mean, std = measure_scale(vae)
    vae.register_to_config(shift_factor=mean, scaling_factor=1 / std)
    vae.save_pretrained(folder)


def train(folder: Path, minutes: float, weights: Path | None, frozen: bool, size: int) -> None:
    """Train for a stretch of wall time and write the result to `folder`, going on from there."""
    torch.manual_seed(0)
    known = (folder / "config.json").exists()
    vae = AutoencoderKL.from_pretrained(folder) if known else build()
    vae = vae.to(memory_format=torch.channels_last)
    peak = 5e-4 if frozen or known else 1.5e-3
    wanted = vae.decoder.parameters() if frozen else vae.parameters()
    optimizer = torch.optim.AdamW(wanted, lr=peak, betas=(0.9, 0.99), weight_decay=1e-4)
    metric = perceptual(weights) if weights else None
    generator = torch.Generator().manual_seed(int(time.time()))
    start, step, mean, first = time.time(), 0, 0.0, int(time.time()) % 10**6 * 1000
    while (share := (time.time() - start) / (minutes * 60)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = pace(share, peak)
        batch = crops(pictures(first + step * size, size), generator)
        loss = loss_of(vae, batch, metric if share > 0.15 or known else None, frozen)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        mean = loss.item() if step == 1 else 0.98 * mean + 0.02 * loss.item()
        if step % 50 == 0:
            print(f"{step} steps, {time.time() - start:.0f} s, loss {mean:.4f}", flush=True)
        if step % 800 == 0 and not frozen:
            save(vae, folder)
    save(vae, folder)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--folder", type=Path, default=Path("build/zoo/vae"))
    parser.add_argument("--lpips", type=Path, help="AlexNet features for the perceptual loss")
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--pictures", type=int, default=8, help="pictures a step, two crops each")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.folder, args.minutes, args.lpips, args.decoder_only, args.pictures)


if __name__ == "__main__":
    main()
