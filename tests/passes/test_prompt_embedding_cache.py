"""Text embeddings that are kept."""

import copy
from typing import Any

import pytest
import torch

from planner.passes import registry
from planner.passes.caching.prompt_embedding_cache import copied, fingerprint
from planner.run.apply import LeavesCaseWarning
from tests.passes.driving import Bench, Executed

PLAN: dict[str, Any] = {
    "prompt_embedding_cache": {"entries": 2}, "steps": {"num_inference_steps": 4},
}  # fmt: skip


def counted(handle: Any) -> tuple[Any, ...]:
    stats = handle.stats["prompt_embedding_cache"]
    return stats["hits"], stats["misses"], stats["entries"]


def test_a_text_is_encoded_once_and_the_images_are_bit_equal(bench: Bench) -> None:
    expected = bench.draw(num_inference_steps=4)
    other = bench.draw("two blue star", num_inference_steps=4)
    with bench.put(PLAN) as handle, Executed(bench.pipe) as executed:
        assert torch.equal(bench.draw(), expected) and counted(handle) == (0, 2, 2)
        assert torch.equal(bench.draw(), expected) and counted(handle) == (2, 0, 2)
        assert executed.encodings == 2
        assert torch.equal(bench.draw("two blue star"), other) and counted(handle) == (1, 1, 2)
        # The least recently used text, the first prompt, made room.
        assert torch.equal(bench.draw(), expected) and counted(handle)[1] > 0


def test_another_length_or_number_of_images_is_another_text(bench: Bench) -> None:
    with bench.put({"prompt_embedding_cache": {}}):
        encode = bench.pipe.encode_prompt
        first = encode("red circle", max_sequence_length=8)
        assert encode("red circle", max_sequence_length=4)[0].shape != first[0].shape
        assert len(encode("red circle", max_sequence_length=8, num_images_per_prompt=2)[0]) == 2


def test_a_caller_who_changes_what_he_got_does_not_change_what_is_kept(bench: Bench) -> None:
    with bench.put({"prompt_embedding_cache": {}}):
        first = bench.pipe.encode_prompt("red star", max_sequence_length=8)
        expected = copied(first)
        for _ in range(2):
            got = bench.pipe.encode_prompt("red star", max_sequence_length=8)
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
            got[0].zero_()


def test_changed_encoder_weights_and_adapters_are_noticed(bench: Bench) -> None:
    weight = bench.pipe.text_encoder_2.encoder.block[0].layer[0].SelfAttention.q.weight
    before = fingerprint(bench.pipe)
    with bench.put({"prompt_embedding_cache": {}}):
        old = bench.pipe.encode_prompt("red star", max_sequence_length=8)[0]
        kept = weight.clone()
        weight.mul_(3.0)
        new = bench.pipe.encode_prompt("red star", max_sequence_length=8)[0]
        weight.copy_(kept)
    assert not torch.equal(old, new)
    assert fingerprint(bench.pipe) != before


def test_another_dtype_tokenizer_or_a_disabled_adapter_is_noticed(bench: Bench) -> None:
    layer = bench.pipe.text_encoder_2.encoder.block[0].layer[0].SelfAttention.q
    before = fingerprint(bench.pipe)
    layer._disable_adapters = True
    try:
        assert fingerprint(bench.pipe) != before
    finally:
        del layer._disable_adapters
    assert fingerprint(bench.pipe) == before
    kept = bench.pipe.tokenizer
    bench.pipe.tokenizer = copy.copy(kept)
    assert fingerprint(bench.pipe) != before
    bench.pipe.tokenizer = kept
    layer.weight.data = layer.weight.data.double()
    assert fingerprint(bench.pipe) != before
    layer.weight.data = layer.weight.data.float()


def test_texts_outlive_a_suspension_and_not_a_removal(bench: Bench) -> None:
    handle = bench.put(PLAN)
    bench.draw()
    with handle.suspended():
        bench.draw("two blue star", num_inference_steps=2)
    bench.draw("green square")
    assert counted(handle)[:2] == (1, 1)  # the negative prompt is known
    handle.remove()
    with bench.put(PLAN) as again:
        bench.draw("green square")
        assert counted(again)[:2] == (0, 2)


@pytest.mark.parametrize("taken, why", [
    ((), "needs a method encode_prompt"),
    (("prompt", "negative_prompt"), "encodes the negative prompt with each of them"),
])  # fmt: skip
def test_pipelines_whose_texts_are_not_encoded_one_by_one_are_refused(
    bench: Bench, taken: tuple[str, ...], why: str
) -> None:
    traits = bench.case.model.traits.model_copy(update={"prompt_arguments": taken})
    model = bench.case.model.model_copy(update={"traits": traits})
    case = bench.case.model_copy(update={"model": model})
    assert why in registry.get("prompt_embedding_cache").missing(case)[0]


def test_a_call_whose_texts_all_pass_by_is_a_complaint(bench: Bench) -> None:
    embeds, pooled, _ = bench.pipe.encode_prompt("red star", max_sequence_length=8)
    plan = {"prompt_embedding_cache": {}}
    with bench.put(plan) as handle, pytest.warns(LeavesCaseWarning, match="instead of"):
        bench.pipe(prompt_embeds=embeds, pooled_prompt_embeds=pooled,
                   negative_prompt_embeds=embeds, negative_pooled_prompt_embeds=pooled,
                   negative_prompt=None, output_type="latent")  # fmt: skip
        assert "kept no text; 2 had arguments" in handle.complaints()["prompt_embedding_cache"]


def test_embeddings_of_the_callers_own_pass_through(bench: Bench) -> None:
    embeds, pooled, _ = bench.pipe.encode_prompt("red star", max_sequence_length=8)
    with bench.put({"prompt_embedding_cache": {}}):
        got = bench.pipe.encode_prompt(
            None, prompt_embeds=embeds, pooled_prompt_embeds=pooled, max_sequence_length=8
        )
        assert got[0] is embeds and got[1] is pooled
