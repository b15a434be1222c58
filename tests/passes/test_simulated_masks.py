"""What recorded calls foretell of every cache is what it then does, on two real pipelines.

The simulator looks at the untouched call, a cache at the call that it changes itself: scalar
methods may be off by a step, masks that are known before the run may not.
"""

import functools
from itertools import pairwise
from typing import Any

import pytest

from planner.catalog.reader import workload_for
from planner.passes import registry
from planner.passes.base import Domain, Pass
from planner.plans.rules import missing_libraries
from planner.prediction.cache_simulator import simulate
from planner.run.pipeline import PipelineSource, load_pipeline
from tests.passes.driving import Bench, shared_bench

STATIC: dict[str, tuple[dict[str, Any], ...]] = {
    "step_mask": ({"share": 0.3}, {"share": 0.6, "order": 0, "early": 0.0},
                  {"share": 0.4, "tensor": "residual"}, {"share": 0.4, "tensor": "groups"}),
    "mag_cache": ({"threshold": 0.05}, {"threshold": 0.2, "most": 2}, {"threshold": 0.4}),
    "taylor_seer": ({"interval": 2}, {"interval": 3, "first": 1}, {"interval": 6}),
}  # fmt: skip
SCALAR = ("easy_cache", "first_block_cache", "sea_cache", "tea_cache")


BESIDE: dict[str, dict[str, Any]] = {"dual_block_cache": {"fn": 1, "warmup": 2}}
"""What else is set: of more than one block at the start a recording does not tell."""


@functools.cache
def shapes_bench() -> Bench:
    """The embedded model with a third of its steps."""
    workload = workload_for("shapes")
    assert workload is not None

    def make() -> Any:
        pipe = load_pipeline(PipelineSource(model="shapes", device="cpu"))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return Bench(make=make, usual=workload.call | {"num_inference_steps": 16})


def threshold(one: Pass, bench: Bench, part: float) -> float:
    """Return a threshold at a part of the way (on its scale) from no reuse to all there is."""
    assert one.narrow is not None
    domain = one.narrow(bench.case, bench.telemetry)["threshold"]
    assert isinstance(domain, Domain) and domain.low and domain.high and domain.log
    return float(domain.low * (domain.high / domain.low) ** part)


def both(bench: Bench, name: str, settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Return by branch the simulated mask and the real one of the same call."""
    foretold = simulate(name, settings, bench.telemetry, bench.work)
    assert foretold is not None
    with bench.put({name: settings}) as handle:
        bench.draw()
        stats = handle.stats[name]
    assert {branch.partition(".")[0] for branch in foretold.masks[0]} == {"cond", "uncond"}
    return [(mask, str(stats[f"mask_{branch}"])) for branch, mask in foretold.masks[0].items()]


@pytest.mark.parametrize(("name", "settings"), [
    (name, settings) for name, every in STATIC.items() for settings in every
])  # fmt: skip
def test_a_mask_that_is_known_before_the_run_is_exact(name: str, settings: dict[str, Any]) -> None:
    for simulated, real in both(shared_bench(), name, settings):
        assert simulated == real and "0" in real


@pytest.mark.parametrize("part", [0.15, 0.4, 0.6, 0.85])
@pytest.mark.parametrize("name", [*SCALAR, *BESIDE])
def test_a_method_that_decides_as_it_runs_is_foretold_to_a_step(name: str, part: float) -> None:
    one, bench = registry.get(name), shared_bench()
    if one.missing(bench.case) or missing_libraries(one, bench.case):
        pytest.skip(f"{name} is not legal here")
    settings = BESIDE.get(name, {}) | {"threshold": threshold(one, bench, part)}
    for simulated, real in both(bench, name, settings):
        assert abs(simulated.count("1") - real.count("1")) <= 1 and len(simulated) == len(real)


@pytest.mark.parametrize("name", [*STATIC, *SCALAR])
def test_the_embedded_model_does_what_is_foretold(name: str) -> None:
    one, bench = registry.get(name), shapes_bench()
    known = STATIC.get(name, ({},))[0]
    settings = dict(known) or {"threshold": threshold(one, bench, 0.5)}
    for simulated, real in both(bench, name, settings):
        off = abs(simulated.count("1") - real.count("1"))
        assert off <= (0 if name in STATIC else 1) and len(real) == 16 and "0" in real


@pytest.mark.parametrize("name", SCALAR)
def test_nothing_is_skipped_below_the_narrowed_thresholds_and_nothing_more_above(name: str) -> None:
    one, bench = registry.get(name), shared_bench()
    low, high = threshold(one, bench, 0.0), threshold(one, bench, 1.0)

    def computed(value: float) -> float:
        found = simulate(name, {"threshold": value}, bench.telemetry, None)
        assert found is not None
        return found.computed

    assert computed(low) == 10 > computed(low * 1.15)
    assert computed(high) == computed(min(10.0, 5 * high)) < computed(high / 1.15)
    counts = [computed(low * (high / low) ** (part / 8)) for part in range(9)]
    assert all(more >= less - 1 for more, less in pairwise(counts))


def test_what_is_said_of_a_simulation_is_its_masks_and_its_work() -> None:
    bench = shared_bench()
    mild, bold = (simulate("step_mask", {"share": share}, bench.telemetry, bench.work)
                  for share in (0.8, 0.3))  # fmt: skip
    assert mild is not None and bold is not None and mild.flops and bold.flops
    assert (mild.computed, bold.computed) == (8, 3) == (mild.low, bold.high)
    assert bold.flops < mild.flops < bench.work.flops
    assert mild.error is not None and bold.error is not None and 0 < mild.error < bold.error
    assert simulate("compile_blocks", {}, bench.telemetry, bench.work) is None
    blind = bench.telemetry.model_copy(update={"runs": ()})
    assert simulate("tea_cache", {}, blind, bench.work) is None
