"""What one pipeline call computes, counted from a real call."""

from typing import Any

import pytest

from planner.errors import UsageError
from planner.prediction.trace import trace
from tests.passes.driving import leftovers, shared_bench
from tests.tiny import tiny_workload

IMAGE, TEXT, WIDTH = 16, 8, 32


def test_phases_come_in_calling_order_with_their_calls() -> None:
    work = shared_bench().work
    assert [(p.name, p.branch, p.calls) for p in work.phases] == [
        ("encode", None, 2.0), ("denoise", "cond", 10.0), ("denoise", "uncond", 10.0),
        ("decode", None, 1.0),
    ]  # fmt: skip
    assert work.forwards == work.computed_forwards == 20.0
    assert leftovers(shared_bench().pipe) == []


def flops(path: str, kind: str) -> float:
    return sum(
        op.flops for op in shared_bench().work.phases[1].operations
        if op.path == path and op.kind == kind
    )  # fmt: skip


def test_a_blocks_linear_and_attention_work_is_what_its_shapes_say() -> None:
    square = 2 * WIDTH * WIDTH
    assert flops("transformer_blocks.0.attn", "linear") == 4 * (IMAGE + TEXT) * square
    assert flops("transformer_blocks.1.ff", "linear") == 2 * IMAGE * 4 * square
    assert flops("transformer_blocks.1.ff_context", "linear") == 2 * TEXT * 4 * square
    assert flops("single_transformer_blocks.1.proj_mlp", "linear") == (IMAGE + TEXT) * 4 * square
    assert flops("single_transformer_blocks.0.attn", "attention") == 4 * (IMAGE + TEXT) ** 2 * WIDTH


def test_only_the_block_stack_is_marked_as_such() -> None:
    for op in shared_bench().work.phases[1].operations:
        assert op.block == op.path.startswith(("transformer_blocks.", "single_transformer_blocks."))
    assert not any(op.block for p in shared_bench().work.phases[::3] for op in p.operations)


def test_two_images_a_call_are_twice_the_arithmetic_of_one() -> None:
    workload = tiny_workload().model_copy(update={"batch_size": 2})
    two = trace(shared_bench().pipe, workload)
    for kind in ("linear", "attention", "convolution"):
        one_, two_ = (total(work, kind) for work in (shared_bench().work, two))
        assert two_ == pytest.approx(2 * one_, rel=0.02)


def total(work: Any, kind: str) -> float:
    return sum(
        phase.calls * op.flops for phase in work.phases for op in phase.operations
        if op.kind == kind and not op.path.startswith(("time_text_embed", "norm_out"))
        and ".norm" not in op.path
    )  # fmt: skip


def test_a_pipeline_that_never_calls_its_denoiser_is_refused() -> None:
    class Idle:
        transformer = shared_bench().pipe.transformer
        components: dict[str, Any] = {}

        def __call__(self, *_: Any, **__: Any) -> None:
            """Draw nothing."""

    with pytest.raises(UsageError, match="Idle did not call its denoiser"):
        trace(Idle(), tiny_workload())
    assert leftovers(shared_bench().pipe) == []
