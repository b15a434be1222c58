"""Compiled blocks underneath hooks."""

from typing import Any

import pytest
import torch

from planner.passes import registry
from planner.passes.compilation import compile_blocks
from tests.passes.driving import Bench, Executed

PASS = registry.get("compile_blocks")
SHORT: dict[str, Any] = {"steps": {"num_inference_steps": 4}}


def test_one_graph_serves_all_blocks_of_a_class_whatever_passes_are_on(
    bench: Bench, graphs: dict[str, Any]
) -> None:
    with bench.put({"compile_blocks": {}} | SHORT):
        plain = bench.draw()
    # Two classes; the first single block sees contiguous text tokens, the others a slice.
    assert graphs["stats"]["unique_graphs"] <= 3
    before = graphs["stats"]["unique_graphs"]
    tea_cache = {"tea_cache": {"threshold": 9.0, "start": 0.0}}
    with bench.put({"compile_blocks": {}} | tea_cache | SHORT) as handle:
        cached = bench.draw()
        assert handle.stats["tea_cache"]["reused"]
    with bench.put({"compile_blocks": {}, "first_block_cache": {"threshold": 0.0}} | SHORT):
        assert torch.equal(bench.draw(), plain)
    assert graphs["stats"]["unique_graphs"] == before
    assert not graphs["graph_break"] and not torch.equal(plain, cached)


def test_quantized_layers_do_not_break_the_graph(bench: Bench, graphs: dict[str, Any]) -> None:
    plan = {"int8_dynamic": {"scope": "feed_forward"}} | SHORT
    with bench.put(plan):
        expected = bench.draw()
    with bench.put(plan | {"compile_blocks": {}}):
        assert torch.allclose(bench.draw(), expected, rtol=1e-4, atol=1e-5)
    assert not graphs["graph_break"] and graphs["stats"]["unique_graphs"] <= 3


def test_a_reused_step_stays_reused_under_compiled_blocks(bench: Bench) -> None:
    plan = {"tea_cache": {"threshold": 0.5, "start": 0.0}}
    with bench.put(plan) as handle:
        expected = bench.draw()
        mask = handle.stats["tea_cache"]["mask_cond"]
    with bench.put(plan | {"compile_blocks": {}}) as handle, Executed(bench.pipe) as executed:
        assert torch.allclose(bench.draw(), expected, rtol=1e-3, atol=1e-4)
        assert handle.stats["tea_cache"]["mask_cond"] == mask
        assert handle.stats["compile_blocks"] == {"blocks": 4, "classes": 2}
    assert executed.forwards == 20


def test_a_cpu_without_compiler_is_told_which_one_is_missing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    (said,) = PASS.missing(bench.case)
    assert said == (
        "compile_blocks needs a C++ compiler on a CPU; 'no-such-compiler' is not on the path"
    )


def test_fused_work_reads_memory_once(bench: Bench) -> None:
    after = PASS.effect(bench.work, PASS.settings(), None)
    pairs = zip(bench.work.phases[1].operations, after.phases[1].operations, strict=True)
    for old, new in pairs:
        fused = old.block and old.kind in ("normalisation", "elementwise")
        assert new.launches == (1 if fused else old.launches)
        assert new.bytes == pytest.approx(old.bytes / old.launches if fused else old.bytes)
        assert new.flops == old.flops


class Doubled(torch.nn.Module):
    """A block of one operation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class Added(torch.nn.Module):
    """Another, since the compiler remembers which sizes of a forward it has seen change."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x


@pytest.mark.parametrize(
    ("dynamic", "kind", "after"), [(False, Doubled, [1, 2, 3]), (True, Added, [1, 2, 2])]
)
def test_one_graph_serves_every_size_after_the_first_where_that_is_asked_for(
    graphs: dict[str, Any], dynamic: bool, kind: Any, after: list[int]
) -> None:
    settings = registry.settings_of("compile_blocks", {"dynamic": dynamic})
    compiled, seen = compile_blocks._compiled(kind, settings, {}), []
    for size in (4, 6, 9):
        assert compiled(kind(), torch.ones(size)).sum() == 2 * size
        seen.append(graphs["stats"]["unique_graphs"])
    assert seen == after
