"""The modulated input is what a block's own attention is given: taken from there, and compared."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models import attention
from diffusers.models.transformers import (
    transformer_cogview4,
    transformer_hunyuan_video,
    transformer_hunyuanimage,
    transformer_kandinsky,
    transformer_motif_video,
    transformer_qwenimage,
    transformer_wan,
    transformer_z_image,
)

from planner.errors import UsageError
from planner.hooks.blocks import segments
from planner.hooks.modulation import INDICATORS, modulated_input
from tests.test_families import FAMILIES, denoiser

WIDTH, TOKENS, TEXT = 32, 6, 3
HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
VIDEO = HEADS | {"mlp_ratio": 2.0}
ATTENTION = ("attn", "attn1", "attention", "self_attention")


class Reached(Exception):
    """Ends a block's forward at its attention: what comes after is not looked at."""


def attention_of(block: Any) -> Any:
    return next(getattr(block, name) for name in ATTENTION if hasattr(block, name))


def seen_by(block: Any) -> list[torch.Tensor]:
    """Return a list that the first tensor given to the block's attention is put into."""
    seen: list[torch.Tensor] = []

    def take(_: Any, args: Any, kwargs: Any) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    attention_of(block).register_forward_pre_hook(take, with_kwargs=True)
    return seen


def watched(block: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return what is computed here of the block's arguments, and what its attention sees."""
    computed: list[torch.Tensor] = []

    def compute(_: Any, args: Any, kwargs: Any) -> None:
        computed.append(modulated_input(block, args, kwargs))

    block.register_forward_pre_hook(compute, with_kwargs=True)
    return computed, seen_by(block)


def agree(computed: torch.Tensor, seen: torch.Tensor) -> bool:
    """Compare with the image tokens, which come last where a block has joined the text to them."""
    image = seen[:, seen.shape[1] - computed.shape[1] :]
    return computed.shape[1] > 1 and torch.allclose(computed, image, rtol=1e-5, atol=1e-5)


# Mochi asks for autocast in float32, which a CPU has not: it says so and computes in float32.
@pytest.mark.filterwarnings("ignore:In CPU autocast")
@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_what_the_attention_of_a_real_denoiser_is_given(name: str) -> None:
    module, call = denoiser(name)
    known = [part.blocks[0] for part in segments(module)
             if type(part.blocks[0]).__name__ in INDICATORS]  # fmt: skip
    assert known and known[0] is segments(module)[0].blocks[0]
    pairs = [watched(block) for block in known]
    call()
    for computed, seen in pairs:
        assert len(computed) == len(seen) == 1 and agree(computed[0], seen[0])


def test_another_time_gives_another_input_for_the_same_tokens() -> None:
    block, arguments = BLOCKS["HunyuanImageTransformerBlock"]()
    before = modulated_input(block, (), arguments)
    later = modulated_input(block, (), arguments | {"temb": arguments["temb"] + 1})
    assert not torch.allclose(before, later, atol=1e-3)


def inputs(**others: Any) -> dict[str, Any]:
    """Return random tokens of image and text with one embedding of the time, and others."""
    return {
        "hidden_states": torch.randn(2, TOKENS, WIDTH),
        "encoder_hidden_states": torch.randn(2, TEXT, WIDTH),
        "temb": torch.randn(2, WIDTH),
    } | others


def sd35() -> Any:
    block = attention.JointTransformerBlock(
        dim=WIDTH, use_dual_attention=True, qk_norm="rms_norm", **HEADS
    )
    return block, inputs()


def dit() -> Any:
    block = attention.BasicTransformerBlock(
        dim=WIDTH, norm_type="ada_norm_zero", num_embeds_ada_norm=10, **HEADS,
        norm_elementwise_affine=False,
    )  # fmt: skip
    given = {"timestep": torch.tensor([3, 4]), "class_labels": torch.tensor([1, 2])}
    return block, {"hidden_states": torch.randn(2, TOKENS, WIDTH)} | given


def cogview4() -> Any:
    block = transformer_cogview4.CogView4TransformerBlock(dim=WIDTH, time_embed_dim=8, **HEADS)
    return block, inputs(temb=torch.randn(2, 8))


def hunyuan_first_frame() -> Any:
    block = transformer_hunyuan_video.HunyuanVideoTokenReplaceTransformerBlock(**VIDEO)
    return block, inputs(token_replace_emb=torch.randn(2, WIDTH), num_tokens=2)


def edited_qwen_image() -> Any:
    block = transformer_qwenimage.QwenImageTransformerBlock(dim=WIDTH, zero_cond_t=True, **HEADS)
    drawn = torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)
    given = {"encoder_hidden_states_mask": None, "temb": torch.randn(4, WIDTH)}
    return block, inputs(modulate_index=drawn, **given)


def wan_with_a_time_a_token() -> Any:
    block = transformer_wan.WanTransformerBlock(dim=WIDTH, ffn_dim=WIDTH, num_heads=2)
    return block, inputs(temb=torch.randn(2, TOKENS, 6, WIDTH), rotary_emb=None)


def z_image_with_given_pictures() -> Any:
    block = transformer_z_image.ZImageTransformerBlock(0, WIDTH, 2, 2, 1e-5, True)
    mask = torch.tensor([[1, 1, 1, 0, 0, 1]] * 2)
    times = {"adaln_noisy": torch.randn(2, WIDTH), "adaln_clean": torch.randn(2, WIDTH)}
    tokens = {"x": torch.randn(2, TOKENS, WIDTH), "attn_mask": None, "freqs_cis": None}
    return block, tokens | times | {"noise_mask": mask}


def kandinsky5() -> Any:
    block = transformer_kandinsky.Kandinsky5TransformerDecoderBlock(WIDTH, 8, WIDTH, 16)
    names = ("visual_embed", "text_embed", "time_embed", "rope", "sparse_params")
    values = (torch.randn(2, TOKENS, WIDTH), None, torch.randn(2, 8), None, None)
    return block, dict(zip(names, values, strict=True))


BLOCKS: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "JointTransformerBlock": sd35,
    "BasicTransformerBlock": dit,
    "CogView4TransformerBlock": cogview4,
    "HunyuanImageTransformerBlock": lambda: (
        transformer_hunyuanimage.HunyuanImageTransformerBlock(**VIDEO), inputs()),
    "HunyuanVideoTokenReplaceTransformerBlock": hunyuan_first_frame,
    "MotifVideoTransformerBlock": lambda: (
        transformer_motif_video.MotifVideoTransformerBlock(**VIDEO), inputs()),
    "QwenImageTransformerBlock": edited_qwen_image,
    "WanTransformerBlock": wan_with_a_time_a_token,
    "ZImageTransformerBlock": z_image_with_given_pictures,
    "Kandinsky5TransformerDecoderBlock": kandinsky5,
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_it_is_what_the_attention_of_a_single_block_is_given(name: str) -> None:
    torch.manual_seed(0)
    block, arguments = BLOCKS[name]()
    block.eval().requires_grad_(False)
    for weight in block.parameters():  # some begin at zero, which would hide the modulation
        torch.nn.init.normal_(weight, std=0.2)
    seen = seen_by(block)

    def stop(*_: Any) -> None:
        raise Reached

    attention_of(block).register_forward_pre_hook(stop)
    with pytest.raises(Reached):
        block(**arguments)
    assert agree(modulated_input(block, (), arguments), seen[0])
    positional = tuple(arguments.values())[:1], dict(list(arguments.items())[1:])
    assert agree(modulated_input(block, *positional), seen[0])


def test_every_known_class_is_proved_here_by_its_attention() -> None:
    real = {type(part.blocks[0]).__name__ for name in FAMILIES
            for part in segments(denoiser(name)[0])}  # fmt: skip
    assert set(INDICATORS) <= real | set(BLOCKS)


def test_a_norm_that_the_time_does_not_move_is_refused_by_name() -> None:
    block = attention.BasicTransformerBlock(dim=WIDTH, **HEADS)
    tokens = torch.randn(1, TOKENS, WIDTH)
    said = "the modulated input of BasicTransformerBlock with layer_norm is not known"
    with pytest.raises(UsageError, match=said) as caught:
        modulated_input(block, (tokens,), {"timestep": None})
    assert "FluxTransformerBlock" in caught.value.way_out
    with pytest.raises(UsageError, match="modulated input of Linear is not known"):
        modulated_input(torch.nn.Linear(1, 1), (), {})
