"""The pure parts of the comparison of caches: knobs, choices, verdicts, methods, budget."""

import math
from contextlib import closing
from pathlib import Path

import pytest

from planner.case.noun import Scalar
from planner.passes.base import Domain
from planner.plans.graph import build
from planner.tuning.bench.cache_dit import cache_dit_peers
from planner.tuning.bench.choose import (
    Point,
    Tried,
    bold_end,
    fastest,
    following,
    refine,
)
from planner.tuning.bench.conclude import against
from planner.tuning.bench.journal import HEAT, SEARCH, UNTOUCHED, Journal, Shot
from planner.tuning.bench.knobs import between, grid, nearest, place
from planner.tuning.bench.peers import diffusers_peers
from planner.tuning.bench.planned import WRAPPERS, fewer_steps, planned
from planner.tuning.bench.scale import BUDGET_SECONDS, Scale, estimate
from planner.tuning.bench.stages import Verdict, standing
from tests.cases import flux_case

LOG = Domain(low=0.01, high=1.0, log=True)
WHOLE = Domain(low=2, high=9, integer=True)
STEPPED = Domain(low=0.1, high=0.8, step=0.02)
WORDS = Domain(choices=("slow", "medium", "fast"))


@pytest.mark.parametrize("domain, count, values", [
    (LOG, 3, [0.01, 0.1, 1.0]),
    (WHOLE, 20, [2, 3, 4, 5, 6, 7, 8, 9]),
    (WHOLE, 3, [2, 6, 9]),
    (STEPPED, 3, [0.1, 0.46, 0.8]),
    (WORDS, 20, ["slow", "medium", "fast"]),
])  # fmt: skip
def test_a_grid_is_even_over_the_knob_and_holds_no_value_twice(
    domain: Domain, count: int, values: list[Scalar]
) -> None:
    assert grid(domain, count) == values


@pytest.mark.parametrize("domain, a, b, middle", [
    (LOG, 0.01, 1.0, 0.1), (WHOLE, 2, 6, 4), (WHOLE, 3, 2, 2), (STEPPED, 0.1, 0.14, 0.12),
    (WORDS, "slow", "fast", "medium"),
])  # fmt: skip
def test_between_two_values_lies_the_middle_of_the_axis(
    domain: Domain, a: Scalar, b: Scalar, middle: Scalar
) -> None:
    assert between(domain, a, b) == middle


def test_a_default_off_the_knob_counts_as_the_nearest_value() -> None:
    assert nearest(WHOLE, 25) == 9 and nearest(LOG, 5.0) == 1.0 and nearest(WORDS, "fast") == "fast"
    assert place(STEPPED, 0.121) == 1.0


def point(value: Scalar, lpips: float, share: float) -> Point:
    return Point(value=value, lpips=lpips, share=share, n=2)


CURVE = [point(value, 0.02 * value, 1 / value) for value in range(2, 10)]
"""Bolder by the value: LPIPS 0.04 to 0.18."""


def test_the_fastest_setting_within_a_level_is_taken_or_none() -> None:
    found = fastest(CURVE, 0.1)
    assert found is not None and found.value == 5
    assert fastest(CURVE, 0.01) is None


def test_the_bold_end_of_a_knob_is_where_calls_get_faster() -> None:
    assert bold_end(WHOLE, CURVE) == 1
    slower = [one.model_copy(update={"share": 1 - one.share}) for one in CURVE]
    assert bold_end(WHOLE, slower) == -1


def test_bisection_closes_in_on_the_level_from_both_sides() -> None:
    asked: list[float] = []

    def measure(value: Scalar) -> Point:
        assert isinstance(value, float)
        asked.append(value)
        return point(value, 0.3 * value, 1 - 0.5 * value)

    known = [point(value, 0.3 * value, 1 - 0.5 * value) for value in (0.01, 0.1, 1.0)]
    refine(LOG, known, 0.1, measure, 6)
    assert asked[0] == 0.1, "the best known setting first, on more prompts"
    good = max(value for value in asked if 0.3 * value <= 0.1)
    bad = min(value for value in asked if 0.3 * value > 0.1)
    assert good <= 1 / 3 < bad and bad / good < 1.2
    assert len(asked) == 7


def test_bisection_goes_back_where_more_prompts_say_otherwise() -> None:
    truth = {2: 0.04, 3: 0.09, 4: 0.2, 5: 0.3}
    known = [point(2, 0.03, 0.5), point(4, 0.09, 0.25), point(5, 0.3, 0.2)]
    asked: list[Scalar] = []

    def measure(value: Scalar) -> Point:
        asked.append(value)
        return point(value, truth[int(str(value))], 1 / int(str(value)))

    refine(WHOLE, known, 0.1, measure, 4)
    assert asked == [4, 3], "4 was over the level after all; between 2 and 4 lies 3; then nothing"


def test_bisection_asks_nothing_where_no_setting_is_within_the_level() -> None:
    refine(WHOLE, CURVE, 0.001, lambda value: pytest.fail(str(value)), 4)


@pytest.mark.parametrize("bounds, value", [
    ((0.2,), 2),  # twice the level: half the mean of 0.1 is wanted
    ((0.06,), 8),  # far below it: bolder
    ((0.095,), None),  # near enough
    ((0.2, 0.05), 4),  # between one that failed and one that held
])  # fmt: skip
def test_the_next_setting_to_certify_follows_the_last_bound(
    bounds: tuple[float, ...], value: Scalar
) -> None:
    starts = [CURVE[3], CURVE[0]]
    tried = [Tried(one, bound) for one, bound in zip(starts, bounds, strict=False)]
    found = following(CURVE, tried, 0.1)
    assert (found and found.value) == value


def test_how_many_times_as_fast_ours_is_is_a_median_with_an_interval_by_order_statistics() -> None:
    peer = [0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8]
    ratio, bounds, count = against([1.0] * 10, peer)
    assert ratio == 1.35 and bounds == (1.0, 1.7) and count == 10
    assert against([1.0], [2.0]) == (2.0, None, 1)
    assert against([], []) == (None, None, 0)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal.begin(tmp_path / "ledger.jsonl", {"bench": "a test"}, resume=False, fresh=False)


def test_a_share_is_of_the_untouched_calls_beside_it_in_the_same_run(journal: Journal) -> None:
    def keep(method: str, seconds: float, run: int, prompt: str = "p") -> Shot:
        return journal.keep(Shot(purpose=SEARCH, method=method, prompt=prompt, seconds=seconds,
                                 lpips=0.5 * seconds, run=run))  # fmt: skip

    keep(UNTOUCHED, 2.0, 1)
    between_two = keep("a", 1.0, 1)
    keep(UNTOUCHED, 3.0, 1)
    last_of_a_run = keep("a", 1.5, 1, "q")
    keep(UNTOUCHED, 8.0, 2)
    keep("b", 2.0, 2)
    assert journal.share(between_two) == 1 / 2.5 and journal.share(last_of_a_run) == 0.5
    assert journal.point("a", None) == Point(value=None, lpips=0.625, share=0.45, n=2)
    assert journal.untouched_seconds() == [2.0, 3.0, 8.0]


def test_a_setting_that_failed_is_no_point_and_says_why(journal: Journal) -> None:
    journal.fail("a", 2, "too bold")
    assert journal.failure("a", 2) == "too bold" and journal.failure("a", 3) is None
    assert journal.failure("a", whole=True) is None
    journal.fail("b", None, "not here", whole=True)
    assert journal.failure("b", 7) == "not here" and journal.failure("b", whole=True) == "not here"


def test_what_holds_at_a_strict_level_holds_at_a_loose_one_and_the_fastest_stands(
    journal: Journal,
) -> None:
    def certify(method: str, value: int, upper: float, share: float, n: int = 32) -> None:
        found = Verdict(level=0.05, method=method, side="ours", value=value, lpips=0.8 * upper,
                        upper=upper, share=share, n=n, holds=False)  # fmt: skip
        journal.note("verdict", found.model_dump(mode="json"))

    certify("a", 1, 0.04, 0.5)
    certify("a", 2, 0.09, 0.4)
    certify("b", 1, 0.03, 0.45)
    certify("b", 2, 0.02, 0.1, n=10)  # stopped early: holds nowhere
    strict = [(one.method, one.value) for one in standing(journal, Scale(), 0.05, "ours")]
    loose = [(one.method, one.value) for one in standing(journal, Scale(), 0.10, "ours")]
    assert strict == [("b", 1), ("a", 1)] and loose == [("a", 2), ("b", 1)]
    assert standing(journal, Scale(), 0.10, "peer") == []


def test_every_legal_approximate_cache_is_a_method_and_wrappers_count_as_the_peers() -> None:
    graph = build(flux_case())
    names = [method.name for method in planned(graph, stacks=())]
    for one in graph.legal:
        mine = one.family == "caching" and one.fidelity == "approximate"
        expected = mine and one.name not in WRAPPERS
        assert any(name.partition(" ")[0] == one.name for name in names) == expected, one.name
    assert {"step_mask (order 0)", "step_mask (order 1)"} <= set(names)
    assert [method.name for method in fewer_steps(graph)] == ["steps"]


def test_a_stack_is_a_method_where_its_passes_may_stand_together() -> None:
    stacks = (("guidance_interval", "step_mask"), ("mag_cache", "step_mask"), ("x", "step_mask"))
    names = {method.name for method in planned(build(flux_case()), stacks)}
    assert {name for name in names if "+" in name} == {
        "guidance_interval + step_mask (order 1)",
    }


def test_the_default_of_every_peer_lies_on_its_knob() -> None:
    for method in (*diffusers_peers(), *cache_dit_peers()):
        assert nearest(method.domain, method.default) == method.default, method.name


def test_a_comparison_of_all_methods_is_planned_within_its_budget() -> None:
    graph = build(flux_case())
    methods = [*fewer_steps(graph), *planned(graph), *diffusers_peers(), *cache_dit_peers()]
    phases = estimate(Scale(), methods, 6.5)
    assert 0.5 * BUDGET_SECONDS < sum(phases.values()) < BUDGET_SECONDS
    assert all(math.isfinite(value) and value > 0 for value in phases.values())


def test_calls_of_a_run_beside_which_the_machine_was_busy_are_made_again(tmp_path: Path) -> None:
    identity = {"bench": "caching", "scale": {"busy": 1.5}}

    def shots(journal: Journal, untouched: float) -> None:
        for method, seconds in ((UNTOUCHED, untouched), ("a", 1.0), (UNTOUCHED, untouched)):
            prompt = f"p{untouched}"
            journal.keep(Shot(purpose=SEARCH, method=method, value=0.1, prompt=prompt,
                              seconds=seconds, lpips=0.0, run=journal.run))  # fmt: skip

    path = tmp_path / "ledger.jsonl"
    with closing(Journal.begin(path, identity, resume=False, fresh=False)) as first:
        for untouched in (2.0, 2.1, 2.2, 9.0):
            shots(first, untouched)
        assert first.find(SEARCH, "a", 0.1, "p9.0") is not None, "what is busy now may stay so"
    with closing(Journal.begin(path, identity, resume=True, fresh=False)) as later:
        assert later.find(SEARCH, "a", 0.1, "p9.0") is None
        assert [shot.prompt for shot in later.shots(SEARCH, "a", 0.1)] == ["p2.0", "p2.1", "p2.2"]


def test_in_a_heat_seconds_are_read_anew_and_distances_stand(journal: Journal) -> None:
    def shot(purpose: str, method: str, seconds: float, lpips: float | None = None) -> None:
        journal.keep(Shot(purpose=purpose, method=method, value=None if lpips is None else 1,
                          prompt="p", seconds=seconds, lpips=lpips, run=1))  # fmt: skip

    shot(SEARCH, UNTOUCHED, 10.0)
    shot(SEARCH, "cache", 8.0, 0.03)  # while the machine had other work
    shot(SEARCH, UNTOUCHED, 10.0)
    before = journal.point("cache", 1)
    assert before is not None and (before.share, before.lpips) == (0.8, 0.03)
    shot(HEAT, UNTOUCHED, 10.0)
    shot(HEAT, "cache", 4.0, 0.09)
    shot(HEAT, UNTOUCHED, 10.0)
    after = journal.point("cache", 1)
    assert after is not None and (after.share, after.lpips, after.n) == (0.4, 0.03, 1)
