"""Text encoders that rest on the host."""

import pytest
import torch

from planner.passes import registry
from planner.plans.graph import build
from planner.plans.plan import Plan
from planner.prediction.meta import work_of
from tests.passes.driving import Bench, declared_bench
from tests.passes.gpus import heavy_work, on_gpu

PASS = registry.get("text_encoder_offload")


@pytest.mark.parametrize("level", ["whole", "leaf"])
def test_encoders_leave_for_the_very_tensors_they_rest_in(bench: Bench, level: str) -> None:
    untouched = bench.draw()
    weights = [weight.data_ptr() for weight in bench.pipe.text_encoder_2.parameters()]
    with declared_bench().put({"text_encoder_offload": {"level": level}}) as handle:
        assert torch.equal(bench.draw(), untouched)
        assert handle.stats["text_encoder_offload"] == {"encoders": 2}
    assert [weight.data_ptr() for weight in bench.pipe.text_encoder_2.parameters()] == weights


def test_remembered_prompts_are_still_found(bench: Bench) -> None:
    plan = {"text_encoder_offload": {}, "prompt_embedding_cache": {}}
    with declared_bench().put(plan) as handle:
        bench.draw()
        bench.draw()
        assert handle.stats["prompt_embedding_cache"]["hits"] == 2
    assert build(on_gpu()).advice(Plan.of(plan)) == ()


def test_every_encoding_brings_the_encoders_in_and_none_brings_them_back() -> None:
    after = PASS.effect(heavy_work(), PASS.settings(), None)
    assert [part.place for part in after.parts] == ["host", "device", "device"]
    assert [phase.transfers for phase in after.phases] == [600, 0, 0, 0]


def test_it_goes_with_a_streamed_denoiser() -> None:
    plan = Plan.of({"text_encoder_offload": {}, "group_offload": {}})
    assert build(on_gpu()).why_not(plan) is None


def test_a_pipeline_without_text_is_told_so() -> None:
    case = on_gpu()
    mute = case.model_copy(update={"model": case.model.model_copy(update={"components": {}})})
    assert PASS.missing(mute) == (
        "text_encoder_offload needs a text encoder; FluxPipeline has none",
    )


def test_layer_by_layer_an_encoder_larger_than_the_card_fits() -> None:
    work = work_of("flux.2-dev")
    whole, leaf = (PASS.effect(work, PASS.settings(level=one), None) for one in ("whole", "leaf"))
    assert leaf.parts[0].place == "streamed" and leaf.parts[0].bytes > 40e9
    assert 1.3e9 < leaf.parts[0].window < 4e9  # the embeddings are 131,072 rows of 5,120
    assert [p.transfers for p in leaf.phases] == [p.transfers for p in whole.phases]
