"""The denoiser with its two text encoders: sizes, initial weights, and one training loss."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import MethodType

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from planner.zoo.patches import LATENT_CHANNELS
from planner.zoo.tokenizers import CLIP_LENGTH, Words

_LEVELS = (0.8, 1.2)
"""Mean and deviation of the noise levels' logits: one in ten below 0.32, one in ten above 0.91."""


@dataclass(frozen=True)
class Size:
    """Sizes of the denoiser and the text encoders."""

    heads: int = 8
    double: int = 4
    single: int = 8
    text: int = 128


class Denoiser(nn.Module):
    """Transformer and text encoders as FluxPipeline calls them, trained together."""

    def __init__(self, size: Size) -> None:
        """Build the three models with fresh weights."""
        super().__init__()
        self.words = Words()
        self.clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(self.words.clip),
                hidden_size=size.text,
                intermediate_size=2 * size.text,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=CLIP_LENGTH,
                projection_dim=size.text,
                bos_token_id=self.words.clip.bos_token_id,
                eos_token_id=self.words.clip.eos_token_id,
                pad_token_id=self.words.clip.pad_token_id,
            )
        )
        self.t5 = T5EncoderModel(
            T5Config(
                vocab_size=len(self.words.t5),
                d_model=size.text,
                d_kv=size.text // 4,
                d_ff=2 * size.text,
                num_layers=2,
                num_heads=4,
                dropout_rate=0.0,
                pad_token_id=0,
                eos_token_id=1,
            )
        )
        self.transformer = FluxTransformer2DModel(
            in_channels=4 * LATENT_CHANNELS,
            num_layers=size.double,
            num_single_layers=size.single,
            attention_head_dim=32,
            num_attention_heads=size.heads,
            joint_attention_dim=size.text,
            pooled_projection_dim=size.text,
            guidance_embeds=False,
            axes_dims_rope=(8, 12, 12),
        )
        self._start_quiet()
        self.inner: Tensor = torch.empty(0)
        self.middle.register_forward_hook(self._keep_inner)

    @property
    def middle(self) -> nn.Module:
        """The block half-way through the transformer."""
        double = self.transformer.transformer_blocks
        single: nn.ModuleList = self.transformer.single_transformer_blocks
        return single[max(0, (len(single) - len(double)) // 2 - 1)]

    def _keep_inner(self, block: nn.Module, args: object, out: tuple[Tensor, Tensor]) -> None:
        """Keep the image tokens (batch, 64, width) after the middle block, for what reads them."""
        self.inner = out[1]

    def compile_blocks(self) -> None:
        """Compile the forward pass of each block; equal blocks share their code."""
        for blocks in ("transformer_blocks", "single_transformer_blocks"):
            for block in getattr(self.transformer, blocks):
                vars(block)["forward"] = torch.compile(block.forward, dynamic=False)

    def multiply_in_bfloat16(self) -> None:
        """Let the transformer's linear layers multiply in bfloat16, with FP32 weights and sums.

        Autocast would do attention in bfloat16 too, whose backward pass is seven times slower than
        in FP32 on CPUs.
        """
        for module in self.transformer.modules():
            if isinstance(module, nn.Linear):
                vars(module)["forward"] = MethodType(_product, module)

    def _start_quiet(self) -> None:
        """Zero the modulations and the output: every block starts as the identity."""
        for name, module in self.transformer.named_modules():
            quiet = ".norm" in name and name.endswith(".linear")
            if isinstance(module, nn.Linear) and (quiet or name in ("proj_out", "norm_out.linear")):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, latents: Tensor, sigma: Tensor, clip_ids: Tensor, t5_ids: Tensor) -> Tensor:
        """Return the velocity (noise - image) of packed latents (batch, 64, channels)."""
        side = round(latents.shape[1] ** 0.5)
        ids = FluxPipeline._prepare_latent_image_ids(1, side, side, latents.device, latents.dtype)
        out: Tensor = self.transformer(
            hidden_states=latents,
            timestep=sigma,
            pooled_projections=self.clip(clip_ids).pooler_output,
            encoder_hidden_states=self.t5(t5_ids)[0],
            txt_ids=torch.zeros(t5_ids.shape[1], 3, device=latents.device),
            img_ids=ids,
            return_dict=False,
        )[0]
        return out


def _product(layer: nn.Linear, x: Tensor) -> Tensor:
    """Return what a linear layer returns, with its product rounded to bfloat16."""
    out = nn.functional.linear(x.bfloat16(), layer.weight.bfloat16()).float()
    return out if layer.bias is None else out + layer.bias


def pack(latents: Tensor) -> Tensor:
    """Return latents (batch, channels, 16, 16) as the pipeline's tokens (batch, 64, 4 channels)."""
    packed: Tensor = FluxPipeline._pack_latents(latents, *latents.shape)
    return packed


def flow_loss(
    model: Denoiser, clean: Tensor, clip: Tensor, t5: Tensor, rng: torch.Generator
) -> Tensor:
    """Return the flow-matching error at logit-normal noise levels, for packed latents.

    The levels are stratified: every batch spans the distribution evenly, which lessens the noise
    of its gradient and leaves its mean as it is. `rng` lives on the device of the latents.
    """
    place, count = clean.device, len(clean)
    noise = torch.randn(clean.shape, generator=rng, device=place)
    jitter = torch.rand(count, generator=rng, device=place)
    quantile = (torch.arange(count, device=place) + jitter) / count
    normal = torch.special.ndtri(quantile.clamp(1e-6, 1 - 1e-6))
    sigma = torch.sigmoid(_LEVELS[0] + _LEVELS[1] * normal)
    at = sigma[:, None, None]
    velocity = model((1 - at) * clean + at * noise, sigma, clip, t5)
    loss: Tensor = (_weights(place) * (velocity.float() - noise + clean).square()).mean()
    return loss


@cache
def _weights(device: torch.device) -> Tensor:
    """Return what the error of each of a token's channels weighs.

    The best answer does not depend on the weights, but what is learned first does: components 0 to
    2 of the code carry colour, 5, 6 and 9 fine pattern that no caption decides, the others the
    slopes of outlines. Packing puts four latents' values side by side.
    """
    weights = torch.ones(LATENT_CHANNELS)
    weights[:3], weights[[5, 6, 9]] = 3.0, 0.3
    return weights.repeat_interleave(4).to(device)
