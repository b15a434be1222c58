"""A small real FluxPipeline with seeded random weights: every class is diffusers' own."""

from typing import Any

from planner.case.case import Case
from planner.case.workload import Workload

WORDS = ("a", "red", "blue", "green", "circle", "square", "star", "left", "of", "two", "on")
CALL: dict[str, Any] = {
    "height": 64, "width": 64, "num_inference_steps": 10, "true_cfg_scale": 3.0,
    "negative_prompt": "", "max_sequence_length": 8,
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
    clip = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(clip_tokenizer), hidden_size=32, intermediate_size=64, projection_dim=32,
        num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=16,
        bos_token_id=len(clip_tokenizer) - 2, eos_token_id=len(clip_tokenizer) - 1,
        pad_token_id=len(clip_tokenizer) - 1,
    ))  # fmt: skip
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
    for module in (vae, clip, t5, transformer):
        module.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_workload(**call: Any) -> Workload:
    """Return the reference call of the tiny pipeline, with overrides."""
    return Workload(call=CALL | call, guidance="sequential", prompts="0" * 64)


def tiny_case(pipe: Any, **call: Any) -> Case:
    """Return the case of a tiny pipeline on this machine."""
    from planner.run.pipeline import PipelineSource, case_of

    source = PipelineSource(model="tests.tiny:tiny_flux")
    return case_of(pipe, source, tiny_workload(**call))


def render(pipe: Any, prompt: str = "a red circle", seed: int = 0, **call: Any) -> Any:
    """Return one image as a float array (64, 64, 3) by the reference call."""
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    arguments = CALL | call
    return pipe(prompt, generator=generator, output_type="np", **arguments).images[0]
