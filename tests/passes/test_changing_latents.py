"""Guidance that a user switches off within a call: what was kept of two images fits no one image.

diffusers documents it as dynamic classifier-free guidance, by a callback at the end of a step.
"""

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from planner.hooks.blocks import denoiser_of
from planner.passes import registry
from tests.passes.driving import Bench, leftovers, unet_bench
from tests.passes.whole import Around, Scripted, latents, on

AT = 4
"""After this step the unconditional half is left out."""

CACHES = {
    "easy_cache": {"threshold": 100.0, "start": 0.0}, "sea_cache": {"threshold": 100.0, "most": 8},
    "step_mask": {"mask": "1100000001"}, "uncond_cache": {"interval": 4},
}  # fmt: skip


def switch_off(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    if step == AT:
        pipe._guidance_scale = 0.0
        tensors = {name: tensor.chunk(2)[-1] for name, tensor in tensors.items()}
    return tensors


def draw(bench: Bench) -> torch.Tensor:
    texts = ["prompt_embeds", "add_text_embeds", "add_time_ids"]
    return bench.draw(callback_on_step_end=switch_off, callback_on_step_end_tensor_inputs=texts)


@pytest.mark.filterwarnings("ignore::planner.run.apply.LeavesCaseWarning")
@pytest.mark.parametrize("name", CACHES)
def test_a_cache_starts_afresh_where_a_batch_loses_its_unconditional_half(name: str) -> None:
    bench = unet_bench()
    with bench.put({name: CACHES[name]}) as handle:
        with Around(denoiser_of(bench.pipe)) as seen:
            drawn = draw(bench)
        counted = handle.stats[name]
        fresh = bench.draw()
        assert torch.equal(bench.draw(), fresh)
    sizes = [one.shape[0] for one in seen.latents]
    assert sizes == [2] * (AT + 1) + [1] * (9 - AT) == [one.shape[0] for one in seen.outputs]
    assert torch.isfinite(drawn).all() and drawn.shape == fresh.shape
    if name != "uncond_cache":
        mask = str(counted["mask_single"])
        assert mask[AT] == "0" and mask[AT + 1] == "1", "nothing that is kept fits"
    assert leftovers(bench.pipe) == []


@pytest.mark.parametrize("name", ["easy_cache", "sea_cache", "step_mask"])
def test_latents_that_grow_within_a_call_begin_anew(name: str) -> None:
    denoiser = Scripted([float(one) for one in range(20)])
    with on(denoiser, {name: CACHES[name]}, 10) as under, under.clock.call():
        for step, size in enumerate((2, 2, 2, 2, 4, 4, 4, 4)):
            shape = (1, 4, 1, size, size)
            assert denoiser(latents(5.0 - step / 10, shape)).shape == shape
            under.step()
        mask = str(under.statistics[name]["mask_single"])
    assert mask[3:5] == "01" and mask[7] == "0"


@pytest.mark.parametrize(("name", "settings"), [
    ("taylor_seer", {"interval": 8, "first": 1}), ("tea_cache", {"threshold": 100.0, "start": 0.0}),
    ("sea_cache", {"threshold": 100.0, "start": 0.0, "most": 8, "tensor": "residual"}),
])  # fmt: skip
def test_a_block_stack_begins_anew_as_well(
    bench: Bench, name: str, settings: dict[str, Any]
) -> None:
    module = bench.pipe.transformer
    with on(module, {name: settings}, 8, bench.artifact(name)) as under, under.clock.call():
        for side in (2, 2, 2, 3, 3, 3):
            assert flux(module, side).shape == (1, side * side, 16)
            under.step()
        assert under.statistics[name]["mask_single"] == "100100"


@pytest.mark.parametrize(("name", "settings"), [
    ("first_block_cache", {"threshold": 10.0}),
    ("pyramid_attention_broadcast", {"spatial": 8, "start": 0.0, "stop": 1.0}),
    ("faster_cache", {"start": 0.0, "stop": 1.0}),
    ("dual_block_cache", {"fn": 1, "warmup": 1, "threshold": 1.0}),
    ("dual_block_cache", {"fn": 1, "warmup": 1, "mask": "ultra", "policy": "static"}),
])  # fmt: skip
def test_what_fitted_other_tokens_is_kept_for_none(
    bench: Bench, name: str, settings: dict[str, Any]
) -> None:
    """Of one row and column, tokens would be added to any other number of them."""
    one = registry.get(name)
    if any(find_spec(text.partition(">")[0].replace("-", "_")) is None for text in one.imports):
        pytest.skip(f"{one.imports} is not installed")
    module = bench.pipe.transformer
    with on(module, {name: settings}, 8) as under, under.clock.call():
        for side in (1, 1, 1, 1, 3, 3, 3, 3):
            assert flux(module, side).shape == (1, side * side, 16)
            under.step()
        mask = str(under.statistics[name]["mask_single"])
    assert mask[0] == mask[4] == "1" and "0" in mask[1:4] and "0" in mask[5:]
    assert leftovers(bench.pipe) == []


def flux(module: Any, side: int) -> torch.Tensor:
    """Call a tiny Flux with so many rows and columns of tokens."""
    axis = torch.arange(float(side))
    ids = torch.cartesian_prod(torch.zeros(1), axis, axis)
    found: torch.Tensor = module(
        hidden_states=torch.randn(1, side * side, 16), encoder_hidden_states=torch.randn(1, 8, 32),
        pooled_projections=torch.randn(1, 32), timestep=torch.ones(1), img_ids=ids,
        txt_ids=torch.zeros(8, 3), return_dict=False,
    )[0]  # fmt: skip
    return found
