"""What steps show belongs to the passes that were on: kept by them, asked for by them."""

from pathlib import Path

import pytest

from planner.case.telemetry import Telemetry
from planner.plans.plan import BASELINE, Plan
from planner.tuning.footing import Footing
from planner.tuning.foresight import Foresight
from planner.tuning.recordings import Recordings
from tests.foretelling import SPEEDS, work
from tests.passes.driving import shared_bench
from tests.test_search import REFERENCE

CACHE = {"easy_cache": {"threshold": 0.3, "start": 0.0}}
QUANTIZED = Plan.of({"int8_dynamic": {}} | CACHE)


@pytest.fixture(scope="module")
def untouched() -> Telemetry:
    return shared_bench().telemetry


@pytest.fixture(scope="module")
def noisy(untouched: Telemetry) -> Telemetry:
    """The same calls, whose outputs move so much that nothing may be skipped."""
    runs = tuple(
        {branch: series | {"output": series["output"].model_copy(update={
            "apart": tuple(tuple(1e4 for _ in row) for row in series["output"].apart)})}
         for branch, series in run.items()}
        for run in untouched.runs
    )  # fmt: skip
    return untouched.model_copy(update={"runs": runs})


def test_what_is_known_of_a_prefix_comes_before_what_the_untouched_call_showed(
    untouched: Telemetry, noisy: Telemetry
) -> None:
    found = Recordings.of(untouched)
    assert found.before(QUANTIZED, "easy_cache") is untouched, "nothing else is known yet"
    found.keep(QUANTIZED.before("easy_cache"), noisy)
    assert found.before(QUANTIZED, "easy_cache") is noisy
    assert found.before(Plan.of(CACHE), "easy_cache") is untouched is found.untouched


def test_exact_passes_before_a_cache_change_nothing_that_it_sees(
    untouched: Telemetry, noisy: Telemetry
) -> None:
    found = Recordings.of(untouched)
    with_exact = Plan.of({"prompt_embedding_cache": {}, "int8_dynamic": {}} | CACHE)
    found.keep(with_exact.before("easy_cache"), noisy)
    assert found.before(QUANTIZED, "easy_cache") is noisy
    assert found.before(Plan.of({"prompt_embedding_cache": {}} | CACHE), "easy_cache") is untouched


def test_a_study_finds_them_again_and_says_which_file_is_broken(
    tmp_path: Path, untouched: Telemetry, noisy: Telemetry
) -> None:
    first = Recordings(tmp_path)
    assert first.untouched is None and first.before(QUANTIZED, "easy_cache") is None
    first.keep(BASELINE, untouched)
    first.keep(QUANTIZED.before("easy_cache"), noisy)
    again = Recordings(tmp_path)
    assert again.untouched == untouched and again.before(QUANTIZED, "easy_cache") == noisy
    assert again.broken == []
    (tmp_path / "telemetry-0.json").write_text("{", encoding="utf-8")
    broken = Recordings(tmp_path)
    assert broken.broken == [tmp_path / "telemetry-0.json"] and broken.untouched == untouched


def test_a_prediction_counts_the_steps_that_the_plan_s_own_prefix_shows(
    untouched: Telemetry, noisy: Telemetry
) -> None:
    known = Recordings.of(untouched)
    foresight = Foresight(Footing(work(), SPEEDS, SPEEDS, 1.4), REFERENCE, known)
    plan = Plan.of({"steps": {"num_inference_steps": 25}} | CACHE)
    before = foresight.predict(plan)
    known.keep(plan.before("easy_cache"), noisy)
    after = foresight.predict(plan)
    assert before is not None and after is not None
    assert before.seconds < 0.9 * after.seconds, "under this prefix nothing is skipped"
    alone = foresight.predict(Plan.of(CACHE))
    assert alone is not None and alone.seconds < REFERENCE


def test_a_worker_hands_on_what_a_calibration_recorded_once() -> None:
    from planner.trials.reference import Telemetries

    found, telemetry = Telemetries(), shared_bench().telemetry
    found[BASELINE, "a"] = telemetry
    assert found.news() == ((BASELINE, telemetry),) and found.news() == ()
    prefix = QUANTIZED.before("easy_cache")
    found[prefix, "a"] = telemetry
    assert found.news() == ((prefix, telemetry),)
