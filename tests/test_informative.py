"""What telemetry says of the settings that a search asks for: inside, outside, or nothing."""

import pytest

from planner.case.telemetry import Telemetry
from planner.passes import registry
from planner.passes.base import Domain
from planner.plans.graph import Graph, build
from planner.prediction.cache_simulator import deciding, inert
from planner.tuning.recorded import without_inert
from planner.tuning.space import space, uninformative
from tests.passes.driving import shared_bench
from tests.test_bench_caching import Said


@pytest.fixture(scope="module")
def seen() -> Telemetry:
    return shared_bench().telemetry


@pytest.fixture(scope="module")
def still(seen: Telemetry) -> Telemetry:
    """Calls in which every step differs from every other by far more than any threshold."""
    apart = {
        branch: {name: one.model_copy(update={
            "apart": tuple(tuple(1e5 * one.sizes[0] + 1e5 for _ in row) for row in one.apart),
            "ratios": tuple(1e5 for _ in one.ratios),
        }) for name, one in series.items()}
        for branch, series in seen.runs[0].items()
    }  # fmt: skip
    return seen.model_copy(update={"runs": (apart,)})


@pytest.fixture(scope="module")
def graph() -> Graph:
    return build(shared_bench().case)


def known(seen: Telemetry) -> Domain:
    name, domain = deciding(registry.get("first_block_cache"), shared_bench().case, seen)
    assert name == "threshold"
    return domain


def asked(**limits: object) -> dict[str, dict[str, dict[str, object]]]:
    return {"first_block_cache": {"threshold": limits}}


def test_the_setting_that_decides_is_the_one_that_telemetry_narrows(seen: Telemetry) -> None:
    case = shared_bench().case
    found = {name: deciding(registry.get(name), case, seen)[0]
             for name in ("tea_cache", "dual_block_cache", "step_mask", "taylor_seer")}  # fmt: skip
    assert found == {"tea_cache": "threshold", "dual_block_cache": "threshold",
                     "step_mask": "share", "taylor_seer": "interval"}  # fmt: skip


def test_a_range_that_is_partly_outside_is_said_and_cut(seen: Telemetry, graph: Graph) -> None:
    inside = known(seen)
    assert inside.low is not None and inside.high is not None
    narrowing = asked(low=inside.low / 10, high=(inside.low * inside.high) ** 0.5)
    (said,) = uninformative(graph, narrowing, seen)
    assert f"changes something only from {inside.low:.3g} to {inside.high:.3g}" in said
    found = space(graph, graph.case, narrowing, seen)["first_block_cache.threshold"]
    assert found.low == inside.low and found.high == pytest.approx(narrowing[
        "first_block_cache"]["threshold"]["high"])  # fmt: skip


def test_what_lies_inside_is_not_said(seen: Telemetry, graph: Graph) -> None:
    inside = known(seen)
    assert uninformative(graph, asked(low=inside.low, high=inside.high), seen) == []
    assert uninformative(graph, asked(choices=[inside.low, inside.high]), seen) == []


def test_choices_outside_are_said_and_kept(seen: Telemetry, graph: Graph) -> None:
    inside = known(seen)
    assert inside.low is not None
    values = [inside.low / 10, inside.low * 1.5]
    (said,) = uninformative(graph, asked(choices=values), seen)
    assert f"is asked for {values[0]:g}, {values[1]:g}" in said
    found = space(graph, graph.case, asked(choices=values), seen)["first_block_cache.threshold"]
    assert found.choices == tuple(values), "what somebody lists is what somebody wants"


def test_a_range_that_is_nowhere_informative_is_said_and_stays(
    seen: Telemetry, graph: Graph
) -> None:
    inside = known(seen)
    assert inside.low is not None
    narrowing = asked(low=inside.low / 100, high=inside.low / 10)
    assert len(uninformative(graph, narrowing, seen)) == 1
    found = space(graph, graph.case, narrowing, seen)["first_block_cache.threshold"]
    assert found.high == pytest.approx(inside.low / 10)


def test_a_cache_that_would_skip_nothing_is_left_out_unless_asked_for(
    still: Telemetry, graph: Graph
) -> None:
    case, said = shared_bench().case, Said()
    assert inert(registry.get("first_block_cache"), case, still)
    assert inert(registry.get("step_mask"), case, still) is None, "its steps are its own choice"
    less = without_inert(graph, still, (), said)
    assert "first_block_cache" not in {one.name for one in less.legal}
    assert "step_mask" in {one.name for one in less.legal}
    line = "warning: first_block_cache skips nothing in the recorded calls at any threshold"
    assert line in said.lines
    wanted, said = build(case, with_=["first_block_cache"]), Said()
    kept = without_inert(wanted, still, (), said)
    assert "first_block_cache" in {one.name for one in kept.legal}
    assert f"{line} and is kept, since it was asked for" in said.lines


def test_nothing_is_left_out_where_everything_skips_or_nothing_is_known(
    seen: Telemetry, graph: Graph
) -> None:
    said = Said()
    assert without_inert(graph, seen, (), said) is graph
    assert without_inert(graph, None, (), said) is graph and said.lines == []
