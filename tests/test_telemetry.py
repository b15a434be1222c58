"""What is kept of recorded calls: differences between any two steps, picked for fewer steps."""

import json
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.case.telemetry import Series, Telemetry

Walk = NDArray[np.float64]


def walk(steps: int = 6) -> Walk:
    """Return steps × tokens × width of a tensor that moves."""
    return np.cumsum(np.random.default_rng(0).normal(size=(steps, 4, 3)), 0)


def series(seen: Walk) -> Series:
    """Return the series of a tensor, worked out beside the recorder."""
    lengths = [np.linalg.norm(one, axis=-1) + 1e-9 for one in seen]
    return Series(
        sizes=tuple(float(np.abs(one).mean()) for one in seen),
        apart=tuple(tuple(float(np.abs(seen[i] - seen[j]).mean()) for j in range(i))
                    for i in range(len(seen))),
        products=tuple(tuple(float((seen[i] * seen[j]).mean()) for j in range(i + 1))
                       for i in range(len(seen))),
        ratios=tuple(float((now / last).mean()) for last, now in pairwise(lengths)),
    )  # fmt: skip


def telemetry(steps: int = 6) -> Telemetry:
    run = {"cond": {"output": series(walk(steps))}, "uncond": {"latents": series(walk(steps))}}
    return Telemetry(places=tuple(1 - step / steps for step in range(steps)), runs=(run,))


def test_a_change_is_relative_to_the_earlier_step() -> None:
    seen = walk()
    expected = [np.abs(now - last).mean() / np.abs(last).mean() for last, now in pairwise(seen)]
    assert series(seen).changes() == pytest.approx(expected)
    far = np.abs(seen[5] - seen[1]).mean() / np.abs(seen[1]).mean()
    assert series(seen).change(5, 1) == pytest.approx(far)
    assert series(seen).change(3, 3) == 0.0


def test_a_change_from_nothing_is_large_and_no_error() -> None:
    seen = walk()
    seen[2] = 0.0
    found = series(seen).changes()
    assert found[1] == pytest.approx(1.0) and found[2] == 1e6
    seen[3] = 0.0
    assert series(seen).changes()[2] == 1e6, "of nothing it is not told whether it moved"


def test_picked_steps_are_as_though_only_they_had_been_there() -> None:
    seen = walk()
    found, alone = series(seen).picked((0, 2, 5)), series(seen[[0, 2, 5]])
    assert (found.sizes, found.apart, found.products) == (alone.sizes, alone.apart, alone.products)
    ratios = series(seen).ratios
    assert found.ratios == pytest.approx((ratios[0] * ratios[1], np.prod(ratios[2:])))
    bare = series(seen).model_copy(update={"products": (), "ratios": ()}).picked((0, 2, 5))
    assert bare.products == () and bare.ratios == () and bare.apart == alone.apart


def test_a_call_of_fewer_steps_shows_the_nearest_recorded_ones() -> None:
    found = telemetry(9).at(5)
    whole, picked = telemetry(9).runs[0]["cond"]["output"], found.runs[0]["cond"]["output"]
    assert found.steps == 5 and found.places == telemetry(9).places[::2]
    assert picked.sizes == whole.sizes[::2] and picked.change(2, 1) == whole.change(4, 2)
    assert telemetry(9).at(2).places == (telemetry(9).places[0], telemetry(9).places[-1])
    assert telemetry(9).at(1).steps == 1


def test_a_call_of_more_steps_repeats_some_and_nothing_changes_there() -> None:
    found = telemetry(3).at(5).runs[0]["cond"]["output"]
    whole = telemetry(3).runs[0]["cond"]["output"]
    assert found.sizes == tuple(whole.sizes[step] for step in (0, 0, 1, 2, 2))
    assert found.changes() == (0.0, *whole.changes(), 0.0)
    assert found.ratios == (1.0, *whole.ratios, 1.0)


def test_the_same_number_of_steps_or_none_is_left_as_it_is() -> None:
    found = telemetry()
    assert found.at(6) is found and found.at(0) is found
    empty = Telemetry(places=(), runs=())
    assert empty.at(4) is empty and empty.series("output") == ()


def test_a_name_gives_the_branches_that_have_it_call_by_call() -> None:
    one = telemetry()
    two = one.model_copy(update={"runs": (*one.runs, {"cond": {}}, *one.runs)})
    assert [list(run) for run in two.series("output")] == [["cond"], ["cond"]]
    assert [list(run) for run in two.series("latents")] == [["uncond"], ["uncond"]]
    assert two.series("tea_cache") == ()


def test_telemetry_is_the_same_after_a_round_trip_through_its_file() -> None:
    found = telemetry()
    text = found.model_dump_json()
    assert Telemetry.model_validate_json(text) == found
    assert "NaN" not in text and set(json.loads(text)) == {"places", "runs"}
