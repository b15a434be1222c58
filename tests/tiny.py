"""Small real pipelines with seeded random weights: every class is diffusers' own."""

from typing import Any

from planner.case.case import Case
from planner.case.workload import Workload

WORDS = ("a", "red", "blue", "green", "circle", "square", "star", "left", "of", "two", "on")
CALL: dict[str, Any] = {
    "height": 64, "width": 64, "num_inference_steps": 10, "true_cfg_scale": 3.0,
    "negative_prompt": "", "max_sequence_length": 8,
}  # fmt: skip

SDXL_CALL: dict[str, Any] = {
    "height": 32, "width": 32, "num_inference_steps": 10, "guidance_scale": 3.0,
    "negative_prompt": "",
}  # fmt: skip
WAN_CALL: dict[str, Any] = {
    "height": 16, "width": 16, "num_frames": 1, "num_inference_steps": 4, "guidance_scale": 3.0,
    "max_sequence_length": 8, "negative_prompt": "",
}  # fmt: skip


def _tokenizers() -> tuple[Any, Any]:
    """A Unigram tokenizer for T5 and a character-level BPE for CLIP, both of a few words."""
    from transformers import CLIPTokenizer, T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), ("▁", -5.0)]
    pieces += [(f"▁{word}", -2.0) for word in WORDS]
    t5 = T5Tokenizer(vocab=pieces, extra_ids=0)
    letters = sorted(set("".join(WORDS)))
    vocab = {token: i for i, token in enumerate([*letters, *(f"{c}</w>" for c in letters)])}
    vocab |= {"<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}
    clip = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16)
    return clip, t5


def _clip(tokenizer: Any) -> dict[str, Any]:
    """The config of a text encoder of one layer for this tokenizer."""
    return {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64,
        "projection_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 16, "bos_token_id": len(tokenizer) - 2,
        "eos_token_id": len(tokenizer) - 1, "pad_token_id": len(tokenizer) - 1,
    }  # fmt: skip


def _frozen(pipe: Any) -> Any:
    """The pipeline with every model in its evaluation mode and no progress bar."""
    import torch

    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_flux(seed: int = 0, layers: int = 2, single_layers: int = 2) -> Any:
    """Return a fresh FluxPipeline: 64×64 px, width 32, `layers` double and single blocks."""
    import torch
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        FluxPipeline,
        FluxTransformer2DModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    torch.manual_seed(seed)
    clip_tokenizer, t5_tokenizer = _tokenizers()
    clip = CLIPTextModel(CLIPTextConfig(**_clip(clip_tokenizer)))
    t5 = T5EncoderModel(T5Config(
        vocab_size=len(t5_tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2,
    ))  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=4,
        layers_per_block=1, mid_block_add_attention=False, use_quant_conv=False,
        use_post_quant_conv=False, scaling_factor=1.0, shift_factor=0.0, sample_size=64,
    )  # fmt: skip
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=layers, num_single_layers=single_layers,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
        pooled_projection_dim=32, guidance_embeds=False, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=clip,
        tokenizer=clip_tokenizer, text_encoder_2=t5, tokenizer_2=t5_tokenizer,
        transformer=transformer,
    )  # fmt: skip
    return _frozen(pipe)


def tiny_sdxl(seed: int = 0) -> Any:
    """Return a fresh StableDiffusionXLPipeline of three stages, text in two of them: 32×32 px."""
    import torch
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    tokenizer, _ = _tokenizers()
    config = CLIPTextConfig(**_clip(tokenizer))
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4, sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 1), attention_head_dim=(1, 2, 2),
        cross_attention_dim=64, use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 32,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
        layers_per_block=1, mid_block_add_attention=False, sample_size=64,
    )  # fmt: skip
    return _frozen(StableDiffusionXLPipeline(
        vae=vae, text_encoder=CLIPTextModel(config), tokenizer=tokenizer, unet=unet,
        text_encoder_2=CLIPTextModelWithProjection(config), tokenizer_2=tokenizer,
        scheduler=EulerDiscreteScheduler(), add_watermarker=False,
    ))  # fmt: skip


def tiny_wan(experts: int = 1) -> Any:
    """Return a fresh WanPipeline; of two experts the second takes over at 0.9 of the noise."""
    import torch
    from diffusers import (
        AutoencoderKLWan,
        FlowMatchEulerDiscreteScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    _, tokenizer = _tokenizers()

    def expert() -> Any:
        return WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=4,
            out_channels=4, text_dim=32, freq_dim=16, ffn_dim=64, num_layers=3, rope_max_seq_len=32,
        )  # fmt: skip

    encoder = UMT5EncoderModel(UMT5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2,
    ))  # fmt: skip
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    second: dict[str, Any] = {}
    first = expert()
    if experts == 2:
        second = {"transformer_2": expert(), "boundary_ratio": 0.9}
    return _frozen(WanPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=vae, transformer=first,
        scheduler=FlowMatchEulerDiscreteScheduler(), **second,
    ))  # fmt: skip


def tiny_workload(usual: dict[str, Any] = CALL, **call: Any) -> Workload:
    """Return the reference call of a tiny pipeline, with overrides."""
    return Workload(call=usual | call, guidance="sequential", prompts="0" * 64)


def tiny_case(pipe: Any, usual: dict[str, Any] = CALL, **call: Any) -> Case:
    """Return the case of a tiny pipeline on this machine."""
    from planner.run.pipeline import PipelineSource, case_of

    source = PipelineSource(model="tests.tiny:tiny_flux")
    return case_of(pipe, source, tiny_workload(usual, **call))


def render(pipe: Any, prompt: str = "a red circle", seed: int = 0, **call: Any) -> Any:
    """Return one image as a float array (64, 64, 3) by the reference call."""
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    arguments = CALL | call
    return pipe(prompt, generator=generator, output_type="np", **arguments).images[0]
