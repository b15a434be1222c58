"""diffusers' First Block Cache as a pass."""

import pytest
import torch

from planner.errors import TrialFailed
from planner.passes import registry
from tests.passes.driving import Bench, Executed

PLAN = {"first_block_cache": {"threshold": 0.3}}
PASS = registry.get("first_block_cache")


def test_images_are_those_of_the_same_cache_enabled_by_hand(bench: Bench) -> None:
    from diffusers import FirstBlockCacheConfig

    denoiser = bench.pipe.transformer
    denoiser.enable_cache(FirstBlockCacheConfig(threshold=0.3))
    by_hand = bench.draw()
    denoiser.disable_cache()
    with bench.put(PLAN):  # whose undo also tidies up what diffusers left behind
        assert torch.equal(bench.draw(), by_hand)


def test_what_is_counted_is_what_was_computed(bench: Bench) -> None:
    with bench.put(PLAN) as handle, Executed(bench.pipe) as executed:
        bench.draw()
        stats = handle.stats["first_block_cache"]
    masks = str(stats["mask_cond"]) + str(stats["mask_uncond"])
    assert executed.stacks == stats["computed"] == masks.count("1")
    assert 0 < masks.count("0") == stats["reused"] == 20 - executed.stacks
    assert executed.forwards == 20


def test_threshold_zero_reuses_nothing_and_is_reported_as_inert(bench: Bench) -> None:
    with bench.put({"first_block_cache": {"threshold": 0.0}}) as handle:
        assert torch.equal(bench.draw(), bench.untouched)
        said = handle.complaints()["first_block_cache"]
    assert said == "first_block_cache reused none of 20 forwards at threshold 0"


def test_a_denoiser_with_a_cache_of_its_own_is_refused_and_keeps_it(bench: Bench) -> None:
    from diffusers import FirstBlockCacheConfig

    denoiser = bench.pipe.transformer
    denoiser.enable_cache(FirstBlockCacheConfig(threshold=0.3))
    with pytest.raises(TrialFailed, match="Caching has already been enabled"):
        bench.put(PLAN)
    assert denoiser.is_cache_enabled
    denoiser.disable_cache()
    bench.put(PLAN).remove()


def test_the_first_block_keeps_its_whole_share_of_the_work(bench: Bench) -> None:
    after = PASS.effect(bench.work, PASS.settings(threshold=0.6), bench.telemetry)
    assert 0 < after.computed_forwards < bench.work.forwards == after.forwards
    shares = {op.path.split(".attn")[0]: op.share for op in after.phases[1].operations
              if op.kind == "attention"}  # fmt: skip
    first, *rest = shares.values()
    assert next(iter(shares)) == "transformer_blocks.0" and first == 1.0
    assert len(rest) == 3 and len(set(rest)) == 1 and rest[0] < 1.0


def test_a_controlnet_pipeline_is_refused_with_the_reason(bench: Bench) -> None:
    model = bench.case.model.model_copy(update={"pipeline": "FluxControlNetPipeline"})
    (said,) = PASS.missing(bench.case.model_copy(update={"model": model}))
    assert "ControlNet adds between blocks" in said
