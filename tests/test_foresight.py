"""What a study foretells: a ratio, its interval, and what earlier trials have taught."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from planner.case.case import Case
from planner.case.device import Device
from planner.case.outcome import Failed
from planner.case.work import Operation, Phase, Work
from planner.catalog.devices import card_of
from planner.measure import calibration
from planner.plans.plan import Plan
from planner.run.devices.base import backend
from planner.run.pipeline import PipelineSource
from planner.trials.trial import Trial
from planner.tuning.footing import Footing, footing
from planner.tuning.foresight import (
    Foresight,
    Prediction,
    compared,
    explained,
    rank_correlation,
)
from tests.foretelling import (
    SPEEDS,
    STEPS,
    foresight,
    foresight_ratio,
    measured,
    taught,
    trial,
    work,
)
from tests.page_study import case as study_case
from tests.page_study import plan
from tests.test_search import REFERENCE, Machine


def test_only_the_ratio_to_the_untouched_call_is_predicted() -> None:
    found = foresight().predict(plan(25))
    assert found is not None
    assert found.seconds == pytest.approx(REFERENCE * foresight_ratio(25), rel=1e-6)
    assert found.low < found.seconds < found.high and found.rests_on == 0


def test_the_interval_is_wide_at_first_and_narrows_with_predictions_that_held() -> None:
    def width(of: Foresight) -> float:
        found = of.predict(plan(30))
        assert found is not None
        return found.high / found.low

    assert width(foresight()) > width(taught(3)) > width(taught(8))
    assert width(taught(8, factor=1.5)) > width(taught(8)), "who was wrong is less sure"
    unseen = taught(8).predict(plan(30, guidance=0.7))
    assert unseen is not None and unseen.high / unseen.low > width(taught(8))


def test_a_pass_that_misses_the_roofline_is_corrected_by_what_was_measured() -> None:
    found = taught(5, factor=1.3).predict(plan(30))
    assert found is not None
    assert found.seconds == pytest.approx(1.3 * REFERENCE * foresight_ratio(30), rel=0.05)


def test_what_the_roofline_leaves_open_on_a_cpu_is_spread_over_launches() -> None:
    slow = explained(SPEEDS.model_copy(update={"launch": 0.0}), work(), REFERENCE)
    launches = 2 + 2 * STEPS
    assert launches * slow.ramp == pytest.approx(REFERENCE - 0.21, rel=1e-6)
    assert explained(SPEEDS, work(), REFERENCE) == SPEEDS, "on a GPU it hides"
    assert explained(slow, work(), 1.0) == slow, "nor where nothing is left open"


def test_the_block_that_a_cache_watches_runs_at_every_step() -> None:
    watched, rest = (
        Operation(path=f"transformer_blocks.{i}.attn", kind="linear", flops=1e6, bytes=1.0,
                  dtype="float32", block=True)
        for i in range(2)
    )  # fmt: skip
    phase = Phase(name="denoise", calls=STEPS, operations=(watched, rest))
    found = Foresight(Footing(Work(phases=(phase,)), SPEEDS, SPEEDS, 1.4), REFERENCE)
    for name, least in (("first_block_cache", 0.5), ("tea_cache", 0.0)):
        of = Plan.of({name: {"threshold": 0.2}})
        counts = {name: {"computed": 40, "reused": 60}}
        found.learn(trial(of, measured(least + (1 - least) * 0.4, counts)))
        expected = found.predict(of)
        assert expected is not None
        share = least + (1 - least) * 0.4
        assert expected.seconds == pytest.approx(REFERENCE * share, rel=1e-3), name


@pytest.mark.parametrize("name", ["easy_cache", "sea_cache", "tea_cache"])
def test_what_was_measured_of_a_cache_is_what_is_foretold_of_it(name: str) -> None:
    found, of = foresight(), Plan.of({name: {"threshold": 0.3}})
    ratio = 0.05 + 0.95 * 0.4  # whole forwards are left out as well as stacks
    found.learn(trial(of, measured(ratio, {name: {"computed": 40, "reused": 60}})))
    expected = found.predict(of)
    assert expected is not None and expected.rests_on == 1
    assert expected.seconds == pytest.approx(ratio * REFERENCE, rel=0.01)


def test_what_a_cache_skips_is_learned_over_its_threshold_and_counted_by_steps() -> None:
    found = foresight()
    before = found.predict(plan(tea=0.2))
    assert before is not None and before.high / before.low > 4, "published caches differ widely"
    for threshold, computed in ((0.1, 70), (0.4, 30)):
        counts = {"tea_cache": {"computed": computed, "reused": 100 - computed}}
        found.learn(trial(plan(tea=threshold), measured(0.05 + 0.95 * computed / 100, counts)))
    seconds = {t: found.predict(plan(tea=t)) for t in (0.05, 0.1, 0.2, 0.4, 0.8)}
    ordered = [one.seconds for one in seconds.values() if one]
    assert ordered == sorted(ordered, reverse=True) and len(set(ordered)) == 5
    half, whole = found.predict(plan(25, tea=0.4)), found.predict(plan(tea=0.2))
    assert half is not None and whole is not None
    rest = 0.05 * REFERENCE
    assert (half.seconds - rest) == pytest.approx((whole.seconds - rest) / 2, rel=0.1)


def test_before_it_has_run_a_cache_is_expected_to_skip_as_others_did() -> None:
    untouched = foresight().predict(Plan.of({"prompt_embedding_cache": {}}))
    assert untouched is not None
    for name in ("mag_cache", "tea_cache"):
        found = foresight().predict(Plan.of({name: {}}))
        assert found is not None and found.rests_on == 0
        assert 0.2 < found.seconds / untouched.seconds < 0.8, name


def test_a_mask_known_before_the_run_is_counted_once_and_needs_no_trial() -> None:
    found = taught(4)
    masked = Plan.of({"step_mask": {"share": 0.2}})
    expected = found.predict(masked)
    assert expected is not None and expected.rests_on == 4
    assert expected.seconds == pytest.approx((0.05 + 0.95 * 0.2) * REFERENCE, rel=0.02)
    counts = {"step_mask": {"computed": 20, "reused": 80}}
    found.learn(trial(masked, measured(expected.seconds / REFERENCE, counts), expected))
    again = found.predict(masked)
    assert again is not None and again.seconds == pytest.approx(expected.seconds, rel=0.01)


def test_nothing_is_ruled_out_on_fewer_than_three_trials_or_before_its_cache_has_run() -> None:
    slow = plan(45)
    for count, ruled_out in ((0, False), (2, False), (3, True)):
        found = taught(count).predict(slow)
        assert found is not None and found.impossible(1.0) is ruled_out
    unknown = taught(8).predict(plan(45, tea=0.02))
    assert unknown is not None and unknown.rests_on == 0 and not unknown.impossible(0.01)
    assert not Prediction(seconds=9, low=8, high=10, rests_on=9).impossible(None)


def test_a_device_without_the_unit_predicts_nothing_of_that_plan() -> None:
    assert foresight().predict(Plan.of({"fp8_dynamic": {}})) is None
    assert foresight().beyond(Plan.of({"fp8_dynamic": {}}), 0.1) == 0, "it may be fast enough"


def test_ranks_ask_for_three_trials_that_were_foretold_and_measured() -> None:
    def of(values: Sequence[tuple[float, float]]) -> list[Trial]:
        return [
            trial(plan(20 + i), measured(ratio), Prediction(seconds=s, low=s / 2, high=s * 2), i)
            for i, (s, ratio) in enumerate(values)
        ]

    assert rank_correlation(of([(1, 0.1), (2, 0.2)]), REFERENCE) is None
    assert rank_correlation(of([(1, 0.1), (2, 0.2), (3, 0.3)]), REFERENCE) == pytest.approx(1.0)
    assert rank_correlation(of([(1, 0.3), (2, 0.2), (3, 0.1)]), REFERENCE) == pytest.approx(-1.0)
    failed = trial(plan(12), Failed(stage="crash", reason="gone"),
                   Prediction(seconds=1, low=1, high=1))  # fmt: skip
    assert compared([failed, trial(plan(13), measured(0.2))], REFERENCE) == []


def test_a_model_that_cannot_be_counted_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_SECONDS", 0.01)
    monkeypatch.setattr(calibration, "_SIDES", {"cpu": 128, "cuda": 512})
    machine = Machine(tmp_path)
    source = PipelineSource(model="tests.tiny:tiny_flux", device="cpu")
    assert footing(source, study_case(), tmp_path, machine) is None
    assert len(machine.lines) == 1
    assert machine.lines[0].startswith("no predictions: no model is called 'tests.tiny:tiny_flux'")


def test_a_cpu_is_calibrated_once_and_the_embedded_model_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_SECONDS", 0.01)
    monkeypatch.setattr(calibration, "_SIDES", {"cpu": 128, "cuda": 512})
    machine, case = Machine(tmp_path), whole_case()
    found = footing(PipelineSource(model="shapes", device="cpu"), case, tmp_path, machine)
    assert found is not None and found.work.forwards == 2 * STEPS
    assert "measured in" in machine.lines[-1]
    assert calibration.stored(backend("cpu").describe(), tmp_path) is not None
    again = footing(PipelineSource(model="shapes", device="cpu"), case, tmp_path, machine)
    assert again is not None and again.eager == found.eager
    assert "measured in" not in machine.lines[-1]
    one = Foresight(found, REFERENCE).predict(plan(25))
    assert one is not None and 0.4 * REFERENCE < one.seconds < 0.6 * REFERENCE


def whole_case() -> Case:
    from planner.catalog.reader import workload_for

    workload = workload_for("shapes")
    assert workload is not None
    return study_case().model_copy(update={"workload": workload})


@pytest.mark.parametrize(
    ("name", "capability", "gigabytes", "card"),
    [
        ("NVIDIA H100 80GB HBM3", (9, 0), 79.6, "h100-sxm"),
        ("NVIDIA H100 PCIe", (9, 0), 79.6, "h100-pcie"),
        ("NVIDIA H200", (9, 0), 140.4, "h200"),
        ("NVIDIA A100-SXM4-40GB", (8, 0), 39.6, "a100-sxm-40gb"),
        ("NVIDIA A100 80GB PCIe", (8, 0), 79.3, "a100-pcie-80gb"),
        ("NVIDIA L40S", (8, 9), 44.5, "l40s"),
        ("NVIDIA GeForce RTX 4090", (8, 9), 23.6, "rtx-4090"),
        ("Tesla T4", (7, 5), 14.6, "t4"),
        ("NVIDIA GeForce GTX 1080", (6, 1), 8.0, None),
    ],
)
def test_a_card_is_found_by_the_name_that_its_driver_gives(
    name: str, capability: tuple[int, int], gigabytes: float, card: str | None
) -> None:
    device = Device(kind="cuda", name=name, capability=capability,
                    memory_bytes=int(gigabytes * 2**30))  # fmt: skip
    found = card_of(device)
    assert (found.id if found else None) == card
