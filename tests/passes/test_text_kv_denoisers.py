"""Keys and values of the text in every denoiser they are kept for, and in compiled blocks."""

import functools
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch.utils._pytree import tree_map

from planner.errors import TrialFailed
from planner.hooks.clock import StepClock
from planner.hooks.text import TEXT_ONLY, text_projections
from planner.passes.base import Context, NoSettings
from planner.passes.caching.text_kv_cache import apply
from planner.prediction.inputs import Asked, builder_for
from planner.prediction.latents import Latent
from tests.passes.driving import shared_bench, traces
from tests.passes.test_text_kv_cache import projecting
from tests.test_families import FAMILIES
from tests.tiny import tiny_wan

SMALL: dict[str, dict[str, Any]] = FAMILIES | {
    "SanaTransformer2DModel": {
        "in_channels": 4, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16,
        "num_cross_attention_heads": 2, "cross_attention_head_dim": 16, "cross_attention_dim": 32,
        "caption_channels": 32, "sample_size": 8,
    },
    "UNet2DConditionModel": {
        "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
        "cross_attention_dim": 32, "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
    "NucleusMoEImageTransformer2DModel": {
        "in_channels": 16, "out_channels": 4, "num_layers": 2, "num_attention_heads": 2,
        "attention_head_dim": 16, "joint_attention_dim": 32, "axes_dims_rope": (4, 6, 6),
        "moe_enabled": False, "mlp_ratio": 8.0,
    },
}  # fmt: skip


def arguments(name: str, config: Any) -> dict[str, Any]:
    if name.startswith("Nucleus"):
        image, text = torch.empty(1, 16, 16), torch.empty(1, 8, 32)
        return {"hidden_states": image, "encoder_hidden_states": text, "timestep": torch.empty(1),
                "img_shapes": [(1, 4, 4)]}  # fmt: skip
    asked = Asked(config, Latent(1, 8, 8), text=8, batch=1, dtype=torch.float32)
    return builder_for(name).arguments(asked)


def drawn(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if value.is_floating_point():
        return torch.randn(value.shape)
    return torch.ones(value.shape, dtype=value.dtype)


@pytest.mark.parametrize("name", TEXT_ONLY)
def test_in_every_denoiser_it_is_for_the_text_alone_makes_them(name: str) -> None:
    torch.manual_seed(0)
    module = getattr(diffusers, name)(**SMALL[name]).eval().requires_grad_(False)
    for weight in module.parameters():  # some begin at zero, which would hide the text
        torch.nn.init.normal_(weight, std=0.2)
    asked = arguments(name, module.config)
    text = drawn(asked["encoder_hidden_states"])
    given = [tree_map(drawn, asked) | {"encoder_hidden_states": text} for _ in range(3)]
    expected = [module(**one, return_dict=False)[0] for one in given]
    assert not torch.equal(expected[0], expected[1])
    clock, seen = StepClock(), {}
    context = Context(case=shared_bench().case, clock=clock, statistics=seen)
    undo = apply(SimpleNamespace(transformer=module), NoSettings(), context)
    with clock.call(), projecting(module) as ran:
        for clock.step, one in enumerate(given):
            assert torch.equal(module(**one, return_dict=False)[0], expected[clock.step])
        assert ran == [len(text_projections(module))] and seen["mask_single"] == "100"
        clock.step = 3
        other = given[0] | {"encoder_hidden_states": text.flip(1)}
        assert not torch.equal(module(**other, return_dict=False)[0], expected[0])
    assert seen["mask_single"] == "1001"
    with torch.inference_mode(), clock.call():
        for clock.step in range(2):
            module(**given[0] | {"encoder_hidden_states": text + 0})
    assert seen["mask_single"] == "1001", "nothing is kept where no change can be seen"
    undo()
    assert traces(module) == []


def test_compiled_blocks_share_one_graph_that_computes_and_one_that_does_not() -> None:
    module = tiny_wan().transformer
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(type(module.blocks[0]).forward, backend=backend, fullgraph=True)
    clock = StepClock()
    context = Context(case=shared_bench().case, clock=clock)
    undo = apply(SimpleNamespace(transformer=module), NoSettings(), context)
    for block in module.blocks:
        block.forward = functools.partial(compiled, block)
    given = [torch.randn(1, 4, 1, 8, 8), torch.tensor([500.0]), torch.randn(1, 8, 32)]
    with torch.no_grad(), clock.call():
        first = module(*given).sample
        clock.step = 1
        assert torch.allclose(module(*given).sample, first, atol=1e-6)
    undo()
    assert len(graphs) == 2
    products = [sum(node.target is torch._C._nn.linear for node in graph.graph.nodes)
                for graph in graphs]  # fmt: skip
    assert products[0] - products[1] == 2


def test_text_that_is_made_of_images_too_is_refused() -> None:
    mixed = SimpleNamespace(unet=diffusers.UNet2DConditionModel(
        **SMALL["UNet2DConditionModel"], encoder_hid_dim=8, encoder_hid_dim_type="image_proj",
    ))  # fmt: skip
    clock = StepClock()
    with pytest.raises(TrialFailed, match="no projection of the text in UNet2DConditionModel"):
        apply(mixed, NoSettings(), Context(case=shared_bench().case, clock=clock))
    assert traces(mixed.unet) == [] and clock._resets == []
