"""Every cache on a real small pipeline of each family, from the graph to the last latent.

FLUX-, SD3-, Qwen-, Wan- and SDXL-type pipelines of diffusers, random weights; where a text encoder
would be large, `encode_prompt` alone is replaced, by one that draws embeddings from the prompt.
"""

import functools
import zlib
from typing import Any

import pytest
import torch

from planner.passes import registry
from planner.passes.base import Family, Fidelity
from planner.plans.graph import build
from planner.plans.plan import Plan
from planner.plans.rules import missing_libraries
from planner.run.traits import guidance_of
from tests.passes.driving import Bench, leftovers
from tests.test_families import denoiser
from tests.tiny import CALL, SDXL_CALL, WAN_CALL, tiny_flux, tiny_sdxl, tiny_wan

QWEN_CALL: dict[str, Any] = {
    "height": 64, "width": 64, "num_inference_steps": 10, "true_cfg_scale": 3.0,
    "negative_prompt": "",
}  # fmt: skip
SD3_CALL: dict[str, Any] = {
    "height": 64, "width": 64, "num_inference_steps": 10, "guidance_scale": 3.0,
    "negative_prompt": "",
}  # fmt: skip

EAGER: dict[str, tuple[dict[str, Any], ...]] = {
    "dual_block_cache": ({"fn": 1, "warmup": 1, "threshold": 1.0},),
    "easy_cache": ({"threshold": 100.0, "start": 0.0},),
    "first_block_cache": ({"threshold": 10.0},),
    "mag_cache": ({"threshold": 5.0, "start": 0.0},),
    "sea_cache": ({"threshold": 100.0, "start": 0.0},
                  {"threshold": 100.0, "start": 0.0, "tensor": "residual"}),
    "step_mask": ({"share": 0.4}, {"share": 0.4, "tensor": "residual"},
                  {"share": 0.4, "tensor": "groups"}),
    "tea_cache": ({"threshold": 50.0, "start": 0.0},),
}  # fmt: skip
"""Settings under which each cache reuses what it may; the defaults of the others do."""


def _embedded(prompt: Any) -> torch.Tensor:
    """Embeddings of 8 tokens, 32 wide, that differ from prompt to prompt."""
    texts = [prompt] if isinstance(prompt, str) else list(prompt or [""])
    seeds = [torch.Generator().manual_seed(zlib.crc32(text.encode())) for text in texts]
    return torch.stack([torch.randn(8, 32, generator=seed) for seed in seeds])


def tiny_qwen() -> Any:
    """Return a fresh QwenImagePipeline: 64×64 px, three blocks."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
    )

    class Qwen(QwenImagePipeline):
        def encode_prompt(self, prompt: Any, prompt_embeds: Any = None, **_: Any) -> Any:
            return _embedded(prompt), None

    torch.manual_seed(0)
    vae = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    pipe = Qwen(transformer=denoiser("QwenImageTransformer2DModel")[0], vae=vae.eval(),
                scheduler=FlowMatchEulerDiscreteScheduler(), text_encoder=None,
                tokenizer=None)  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_sd3() -> Any:
    """Return a fresh StableDiffusion3Pipeline: 64×64 px, three blocks, guidance in one batch."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    class SD3(StableDiffusion3Pipeline):
        def encode_prompt(self, prompt: Any, negative_prompt: Any = None, **_: Any) -> Any:
            text, other = _embedded(prompt), _embedded(negative_prompt)
            return text, other.expand_as(text), text[:, 0], other[:, 0].expand_as(text[:, 0])

    pipe = SD3(
        transformer=denoiser("SD3Transformer2DModel")[0], vae=tiny_flux().vae,
        scheduler=FlowMatchEulerDiscreteScheduler(), text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


PIPELINES: dict[str, tuple[Any, dict[str, Any]]] = {
    "FLUX": (tiny_flux, CALL), "SD3": (tiny_sd3, SD3_CALL), "Qwen": (tiny_qwen, QWEN_CALL),
    "Wan": (tiny_wan, WAN_CALL | {"num_inference_steps": 10}), "SDXL": (tiny_sdxl, SDXL_CALL),
}  # fmt: skip


@functools.cache
def made(family: str) -> Bench:
    """A bench of a family, with the guidance that its call has."""
    make, call = PIPELINES[family]
    bench = Bench(make=make, usual=call)
    workload = bench.case.workload.model_copy(update={"guidance": guidance_of(bench.pipe, call)})
    bench.case = bench.case.model_copy(update={"workload": workload})
    return bench


CACHES = [name for name in registry.names() if registry.get(name).family is Family.CACHING]


@pytest.mark.filterwarnings("ignore::planner.run.apply.LeavesCaseWarning")
@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("family", PIPELINES)
def test_a_cache_that_is_legal_runs_reuses_and_leaves_no_trace(family: str, name: str) -> None:
    bench, one = made(family), registry.get(name)
    graph = build(bench.case)
    if missing_libraries(one, bench.case):
        pytest.skip(f"{one.imports} is not installed")
    if name in graph.excluded:
        assert graph.excluded[name].startswith(WHY[family][name])
        return
    assert name not in WHY[family], f"{name} is legal on {family}, and was not"
    untouched = bench.untouched
    for settings in EAGER.get(name, ({},)):
        if graph.why_not(Plan.of({name: settings})) is not None:
            assert settings.get("tensor") in ("residual", "groups"), family
            continue
        with bench.put({name: settings}) as handle:
            drawn = bench.draw()
            assert torch.equal(bench.draw(), drawn)
            counted = dict(handle.stats[name])  # of a second call, for what is kept between calls
        assert torch.isfinite(drawn).all() and drawn.shape == untouched.shape
        assert counted.get("reused", 1), f"{settings} reused nothing"
        assert torch.equal(drawn, untouched) == (one.fidelity is Fidelity.EXACT)
        assert torch.equal(bench.draw(), untouched) and leftovers(bench.pipe) == []


_NO_UNET = {"deep_cache": "deep_cache needs a UNet2DConditionModel; this pipeline has a "}
_NO_TEXT = {"text_kv_cache": "text_kv_cache needs a denoiser that is known to leave its text alone"}
_NO_ENCODER = {"prompt_embedding_cache": "prompt_embedding_cache needs a text encoder"}
_NO_BLOCKS = "needs blocks that diffusers has registered; UNet2DConditionModel has none"
_NO_ATTENTION = "needs blocks with attention that diffusers knows; the blocks of UNet2D"

WHY: dict[str, dict[str, str]] = {
    "FLUX": _NO_UNET | _NO_TEXT,
    "SD3": _NO_UNET | _NO_TEXT | _NO_ENCODER | {
        "first_block_cache": "first_block_cache needs blocks that take hidden_states and all",
        "modulation_cache": "modulation_cache needs conditioning that comes again; that of Joint",
    },
    "Qwen": _NO_UNET | _NO_TEXT | _NO_ENCODER,
    "Wan": _NO_UNET | {
        "modulation_cache": "modulation_cache needs blocks whose modulation is fed by the",
        "prompt_embedding_cache": "prompt_embedding_cache needs prompts that are encoded one by",
    },
    "SDXL": {
        "dual_block_cache": "dual_block_cache needs blocks that are all called alike; of UNet2D",
        "faster_cache": f"faster_cache {_NO_ATTENTION}",
        "first_block_cache": f"first_block_cache {_NO_BLOCKS}",
        "mag_cache": f"mag_cache {_NO_BLOCKS}",
        "modulation_cache": "modulation_cache needs blocks whose modulation is fed by the",
        "prompt_embedding_cache": "prompt_embedding_cache needs prompts that are encoded one by",
        "pyramid_attention_broadcast": f"pyramid_attention_broadcast {_NO_ATTENTION}",
        "taylor_seer": f"taylor_seer {_NO_BLOCKS}",
        "tea_cache": "tea_cache needs registered blocks with a known indicator; the first here is",
    },
}  # fmt: skip
"""How the graph begins to say why a cache is not legal on a family."""
