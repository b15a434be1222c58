"""What a policy expects its caches to reuse, and what a call that does otherwise brings about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from planner.case.evidence import Evidence
from planner.case.hit_rate import HitRate
from planner.case.outcome import Measured
from planner.case.prompts import Sample
from planner.errors import InvalidFile, PolicyDoesNotFit
from planner.passes import registry
from planner.passes.base import Family
from planner.plans.plan import Plan
from planner.policy.describe import describe
from planner.policy.file import dump, read_policy, write_policy
from planner.policy.runtime import load
from planner.reporting.findings import read_findings
from planner.reporting.verdict import summary
from planner.run.apply import Handle, LeavesCaseWarning
from planner.run.expected import Expected, UnexpectedReuseWarning
from planner.trials.trial import Trial
from planner.tuning.conclude import hit_rates, rounds_of_trial
from tests.page_study import certified_study
from tests.passes.driving import Bench, leftovers, shared_bench
from tests.policies import a_policy, some_evidence
from tests.test_conformance import middling

CACHE = {"first_block_cache": {"threshold": 5.0}}
"""Reuses every step but the first: 90 % of the bench's ten."""

SEEN = 0.9


@pytest.fixture
def bench() -> Iterator[Bench]:
    yield shared_bench()
    assert leftovers(shared_bench().pipe) == []


@pytest.fixture
def handle(bench: Bench) -> Iterator[Handle]:
    with bench.put(CACHE) as handle:
        yield handle


def call(computed: int, reused: int, branches: tuple[str, ...] = ("cond", "uncond")) -> Any:
    """What a pass counts in one call."""
    rate = reused / (computed + reused)
    return {"computed": computed, "reused": reused, "hit_rate": rate} | {
        f"{what}_{branch}": count // len(branches)
        for branch in branches for what, count in (("computed", computed), ("reused", reused))
    }  # fmt: skip


def samples(name: str, *calls: Any) -> list[Sample]:
    return [Sample(prompts=("p",), seconds=1.0, statistics={name: one, "steps": {}})
            for one in calls]  # fmt: skip


def test_of_a_mask_that_is_known_before_the_call_exactly_that_is_expected() -> None:
    found = hit_rates(samples("step_mask", *[call(18, 34)] * 3))
    assert found == {"step_mask": HitRate(value=0.6538, low=0.6538, high=0.6538, calls=3)}


def test_of_a_cache_that_looks_at_the_images_a_step_of_every_branch_more_is_expected() -> None:
    alike = hit_rates(samples("tea_cache", call(20, 20), call(20, 20)))
    assert alike == {"tea_cache": HitRate(value=0.5, low=0.45, high=0.55, calls=2)}
    others = hit_rates(samples("tea_cache", call(20, 20), call(2, 38), call(38, 2)))
    assert others == {"tea_cache": HitRate(value=0.5, low=0.0, high=1.0, calls=3)}
    alone = hit_rates(samples("tea_cache", call(10, 10, ("cond",))))
    assert alone == {"tea_cache": HitRate(value=0.5, low=0.45, high=0.55, calls=1)}


def test_a_plan_that_reuses_nothing_expects_nothing() -> None:
    assert hit_rates(samples("int8_dynamic", {"layers": 88})) is None


def a_trial(**more: Any) -> Trial:
    plan = Plan.of({"tea_cache": {"threshold": 0.2}})
    outcome = Measured(seconds=(1.0,) * 3, ratios=(0.5,) * 3, lpips=(0.1,) * 3,
                       statistics={"tea_cache": call(20, 20)}, **more)  # fmt: skip
    return Trial(number=0, plan=plan, outcome=outcome, origin="seed", seconds=9.0)


def test_a_search_trial_tells_what_every_call_of_it_reused() -> None:
    trial = a_trial(hit_rates={"tea_cache": (0.4, 0.6, 0.5)})
    found = hit_rates(rounds_of_trial(Trial.model_validate_json(trial.model_dump_json())).candidate)
    assert found == {"tea_cache": HitRate(value=0.5, low=0.35, high=0.65, calls=3)}


def test_a_search_trial_of_an_older_ledger_tells_what_its_last_call_reused() -> None:
    written = a_trial().model_dump(mode="json")
    del written["outcome"]["hit_rates"]
    found = hit_rates(rounds_of_trial(Trial.model_validate(written)).candidate)
    assert found == {"tea_cache": HitRate(value=0.5, low=0.45, high=0.55, calls=1)}


def test_a_call_inside_the_interval_stays_certified(bench: Bench, handle: Handle) -> None:
    handle.expect({"first_block_cache": (SEEN, SEEN), "tea_cache": (0.5, 0.6)})
    bench.draw()
    assert handle.certified, "and of a pass that is not in the plan nothing is asked"


def test_a_call_outside_it_warns_once_with_both_figures_and_the_way_out(
    bench: Bench, handle: Handle
) -> None:
    handle.expect({"first_block_cache": (0.3, 0.5)})
    with pytest.warns(UnexpectedReuseWarning) as said:
        bench.draw()
    (one,) = said
    assert str(one.message) == (
        "first_block_cache reused 90.0% of its forwards; the policy expects 30.0% to 50.0%: check "
        "scheduler, steps and adapters (LoRA) against the policy's case, or tune again"
    )
    assert one.filename.endswith("driving.py"), "where the pipeline was called"
    assert not handle.certified
    bench.draw()
    assert not handle.certified


def test_what_was_said_is_said_again_when_it_is_twice_as_bad_or_the_other_way_round() -> None:
    expected = Expected({"tea_cache": (0.4, 0.5)})

    def news(rate: float) -> list[bool]:
        return [one.news for one in expected.departures({"tea_cache": {"hit_rate": rate}})]

    assert [news(rate) for rate in (0.45, 0.36, 0.36, 0.33, 0.3, 0.36, 0.6, 0.4, 0.55)] == [
        [], [True], [False], [False], [True], [False], [True], [], [False],
    ]  # fmt: skip
    assert [one.news for one in expected.departures({})] == [True], "nothing was counted at all"


def test_a_strict_handle_refuses_the_result_of_every_such_call(
    bench: Bench, handle: Handle
) -> None:
    handle.expect({"first_block_cache": (0.3, 0.3)}, strict=True)
    for _ in range(2):
        with pytest.raises(PolicyDoesNotFit, match=r"90\.0% .* expects 30\.0%: check") as caught:
            bench.draw()
        assert caught.value.value and "tune again" in caught.value.way_out
    assert not handle.certified


def test_a_call_that_left_the_case_is_not_held_against_it(bench: Bench, handle: Handle) -> None:
    handle.expect({"first_block_cache": (SEEN, SEEN)})
    with pytest.warns(LeavesCaseWarning) as said:
        bench.draw(num_inference_steps=5)
    assert len(said) == 1 and handle.stats["first_block_cache"]["hit_rate"] == 0.8
    bench.draw(num_inference_steps=5)
    bench.draw()


def test_a_call_that_broke_off_is_not_held_against_it(bench: Bench, handle: Handle) -> None:
    def stop(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        if step == 2:
            raise InterruptedError("in the middle")
        return {}

    def leave_off(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        pipe._interrupt = step == 2
        return {}

    handle.expect({"first_block_cache": (SEEN, SEEN)})
    with pytest.raises(InterruptedError):
        bench.draw(callback_on_step_end=stop)
    bench.draw(callback_on_step_end=leave_off)
    assert handle.certified and handle.stats["first_block_cache"]["hit_rate"] != SEEN


def test_a_denoiser_that_took_the_place_of_the_planned_one_is_noticed(
    bench: Bench, handle: Handle
) -> None:
    from diffusers import FluxTransformer2DModel

    handle.expect({"first_block_cache": (SEEN, SEEN)})
    bench.draw()
    own = bench.pipe.transformer
    bench.pipe.transformer = FluxTransformer2DModel.from_config(own.config).eval()
    try:
        with pytest.warns(UnexpectedReuseWarning, match=r"reused 0\.0% of its forwards"):
            bench.draw()
    finally:
        bench.pipe.transformer = own
    assert handle.complaints(), "and counts nothing as it did in the call before"


def evidence_of(rate: HitRate | None, **older: Any) -> Evidence:
    rates = None if rate is None else {"first_block_cache": rate}
    return some_evidence().model_copy(update={"hit_rates": rates, **older})


@pytest.mark.parametrize("evidence", [
    evidence_of(HitRate(value=0.4, low=0.3, high=0.5, calls=32)),
    evidence_of(None, expected_hit_rates={"first_block_cache": (0.3, 0.5)}),
], ids=["as stated now", "as stated by older files"])  # fmt: skip
def test_a_policy_from_its_file_holds_its_pipeline_against_its_evidence(
    bench: Bench, tmp_path: Path, evidence: Evidence
) -> None:
    file = a_policy(case=bench.case, plan=Plan.of(CACHE), artifacts={}, evidence=evidence)
    write_policy(file, tmp_path / "2s.yaml")
    policy = load(tmp_path / "2s.yaml")
    assert policy.file == file and dump(policy.file) == dump(file)
    with policy.apply(bench.pipe) as handle:
        assert handle.certified
        with pytest.warns(UnexpectedReuseWarning, match=r"90\.0% .* expects 30\.0% to 50\.0%"):
            bench.draw()
        assert not handle.certified
    with policy.apply(bench.pipe, strict=True), pytest.raises(PolicyDoesNotFit):
        bench.draw()


def test_a_hit_rate_is_read_as_strictly_as_everything_else(tmp_path: Path) -> None:
    path = tmp_path / "2s.yaml"
    write_policy(a_policy(), path)
    text = path.read_text()
    assert "  hit_rates:\n    tea_cache: {value: 0.45, low: 0.4, high: 0.5, calls: 32}\n" in text
    path.write_text(text.replace("{value: 0.45, low: 0.4,", "{value: 0.45, lowest: 0.4,"))
    with pytest.raises(InvalidFile, match=r"evidence\.hit_rates\.tea_cache\.lowest") as caught:
        read_policy(path)
    assert "did you mean low" in caught.value.way_out


def test_describing_a_policy_says_in_one_line_what_is_reused() -> None:
    (line,) = [line for line in describe(a_policy()) if line.startswith("reuse ")]
    assert line == "reuse     tea_cache 45.0% (40.0% to 50.0%) of forwards, from 32 calls"
    rates = {"step_mask": HitRate(value=0.66, low=0.66, high=0.66, calls=1)}
    fixed = some_evidence().model_copy(update={"hit_rates": rates})
    assert "reuse     step_mask 66.0% of forwards, from 1 call" in describe(
        a_policy(evidence=fixed)
    )
    older = evidence_of(None, expected_hit_rates={"tea_cache": (0.4, 0.5)})
    assert "reuse     tea_cache 40.0% to 50.0% of forwards" in describe(a_policy(evidence=older))
    none = describe(a_policy(evidence=evidence_of(None)))
    assert not any(line.startswith("reuse") for line in none)


def test_the_page_of_a_study_says_what_is_reused(tmp_path: Path) -> None:
    policy = certified_study(tmp_path)
    assert policy.evidence is not None and policy.evidence.hit_rates is not None
    rate = policy.evidence.hit_rates["tea_cache"]
    assert rate.calls == 32 and rate.low < 0.45 < rate.value < 0.6 < rate.high
    rows = [row for row in summary(read_findings(tmp_path, policy)) if "reuses" in row.name]
    assert [(row.name, row.tuned) for row in rows] == [
        ("forwards that tea_cache reuses", f"{rate.value:.1%}")
    ]
    assert rows[0].bound == f"{rate.low:.1%} to {rate.high:.1%} expected of a call"


@pytest.mark.parametrize("name", [
    name for name in registry.names()
    if (one := registry.get(name)).family in (Family.CACHING, Family.SAMPLING)
    and one.batch_invariant and not one.missing(shared_bench().case)
])  # fmt: skip
def test_what_does_not_look_at_the_images_reuses_the_same_of_all_of_them(
    bench: Bench, name: str
) -> None:
    with bench.put({name: middling(registry.get(name), bench)}) as handle:
        bench.draw()
        before = {key: value for key, value in handle.stats[name].items() if "mask" in key}
        if "hit_rate" not in handle.stats[name]:
            pytest.skip(f"{name} reuses what earlier calls left: nothing is expected of one")
        bench.draw("two blue star", seed=3)
        after = {key: value for key, value in handle.stats[name].items() if "mask" in key}
    assert after == before, "else exactly what was seen is no expectation"
