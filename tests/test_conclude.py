"""What a study concludes: the evidence of a policy, where it came from, and where it is written."""

import json
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from planner.case.goal import Goal
from planner.case.outcome import Measured
from planner.case.prompts import Sample
from planner.measure.statistics import median_upper
from planner.plans.plan import Plan
from planner.policy.file import read_policy, schema
from planner.run.pipeline import PipelineSource
from planner.trials.ledger import Ledger
from planner.trials.trial import Trial
from planner.tuning import prepare
from planner.tuning.certify import Rounds
from planner.tuning.conclude import evidence, write
from planner.tuning.noise import Noise
from planner.tuning.policies import Conclusion, make_policy
from planner.tuning.request import TuneRequest
from planner.tuning.session import Session
from tests.cases import flux_case
from tests.page_study import GOAL, REFERENCE, Fake, case, certified_study, plan, split
from tests.policies import a_policy, some_evidence

SECONDS = (4.0, 4.1, 3.9, 4.2, 3.8, 4.0, 4.0)
NOISE = Noise(reference_seconds=4.0, spread=0.025, lpips=0.0, lpips_p95=0.0, memory_bytes=2**20,
              load_seconds=1.0, first_call_seconds=5.0, seconds=SECONDS)  # fmt: skip


def a_request(**more: Any) -> TuneRequest:
    source = PipelineSource(model="shapes", device="cpu")
    asked = TuneRequest(source=source, workload=case().workload, goal=GOAL, split=split())
    return asked.model_copy(update=more)


def concluded(batch: int, noise: Noise = NOISE) -> Any:
    """Conclude on a plan that takes 1 s instead of 4 s a call, and 3.5 s to start."""
    outcome = Measured(seconds=(1.0,), ratios=(0.25,), apply_seconds=0.5, first_call_seconds=4.0)
    of = plan(12)
    trial = Trial(number=0, plan=of, outcome=outcome, origin="seed", seconds=9.0)
    ours = Sample(prompts=("p",) * batch, seconds=1.0, lpips=(0.05,) * batch)
    rounds = Rounds(candidate=(ours,), baseline=(Sample(prompts=("p",), seconds=4.0),))
    return evidence(of, rounds, noise, Goal(budget_seconds=2.0), [trial], None)


@pytest.mark.parametrize(("batch", "images"), [(1, 2), (4, 5)])
def test_start_up_pays_off_after_images_whatever_the_batch(batch: int, images: int) -> None:
    assert concluded(batch).pays_off_after_images == images  # 3.5 s at 3 s saved a call


def test_evidence_states_how_sure_the_untouched_calls_median_is() -> None:
    latency = concluded(1).latency
    assert latency.noise_spread == 0.025
    assert latency.baseline.value == 4.0
    assert latency.baseline.upper == median_upper(SECONDS, 0.95) == 4.2
    few = NOISE.model_copy(update={"seconds": SECONDS[:3]})
    assert concluded(1, few).latency.baseline.upper is None, "three calls bound no median"
    assert concluded(1).lpips.mean.upper is None, "and one image no mean"


def test_a_certificate_bounds_the_untouched_call_at_its_own_level(tmp_path: Path) -> None:
    found = certified_study(tmp_path).evidence
    assert found is not None and found.latency.baseline.upper is not None
    assert REFERENCE < found.latency.baseline.upper < 1.03 * REFERENCE


def test_a_written_policy_finds_its_schema_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "policies" / "shapes" / "cpu" / "2s.yaml"
    write(a_policy(), path)
    named = re.search(r"\$schema=(\S+)", path.read_text())
    assert named is not None
    assert json.loads((path.parent / named[1]).read_text()) == schema()
    assert read_policy(path) == a_policy()


def test_a_resumed_study_states_the_command_that_began_it(tmp_path: Path) -> None:
    request = a_request(command="planner tune --budget 2s --resume")
    conclusion = Conclusion(plan=Plan(), status="measured", goal=GOAL,
                            evidence=some_evidence(certified=False))  # fmt: skip
    facts = {"command": "planner tune --budget 2s"}
    with closing(Ledger.create(tmp_path / "ledger.jsonl", facts)) as ledger:
        policy = make_policy(conclusion, case(), Session(ledger, request, tmp_path), {})
    assert policy.provenance.command == "planner tune --budget 2s"


class StillWorker:
    """A supervisor whose untouched call takes four seconds of nobody's time."""

    pipeline_seconds = overhead_seconds = 0.0

    def __init__(self, *_: Any, **__: Any) -> None:
        self.case = flux_case()

    def __enter__(self) -> "StillWorker":
        return self

    def __exit__(self, *_: object) -> None:
        """Stop nothing."""

    def render(self, *_: Any, **__: Any) -> tuple[Sample, ...]:
        return (Sample(prompts=("p",), seconds=4.0),)


class Lines:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def tick(self, phase: str, done: float, of: float, incumbent: str) -> None:
        raise AssertionError("nothing is searched")


def test_a_dry_run_names_clashes_stacks_and_the_plans_that_will_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prepare, "Supervisor", StillWorker)
    lines = Lines()
    domains = {"steps": {"num_inference_steps": {"low": 30, "high": 40}}}
    found = prepare.dry_run(a_request(domains=domains, trials=3), lines)
    assert ["first_block_cache", "tea_cache"] in [sorted((c["a"], c["b"])) for c in
                                                  found["clashes"]]  # fmt: skip
    assert not any({"first_block_cache", "tea_cache"} <= set(stack) for stack in found["stacks"])
    assert any(line.startswith("not together: ") for line in lines.said)
    assert any(line.startswith("stack: ") and "steps" in line for line in lines.said)
    assert 0 < len(found["seeds"]) <= 3
    whole = prepare.dry_run(a_request(domains=domains), lines)["seeds"]
    steps = [int(n) for plan in whole for n in re.findall(r"steps\((\d+)", plan)]
    assert steps and all(30 <= n <= 40 for n in steps), "moved into the domain, as they will run"
    assert len(whole) > 3


def test_a_study_that_exists_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from planner.errors import UsageError
    from planner.run.devices.base import backend
    from planner.tuning import tune
    from planner.tuning.session import study_folder

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the pipeline was loaded")

    monkeypatch.setattr(tune, "Supervisor", load)
    request = a_request(out=tmp_path)
    Fake(study_folder(request, backend("cpu").describe()))
    with pytest.raises(UsageError, match="a study already lies") as caught:
        tune.run(request, Lines())
    assert "--resume" in caught.value.way_out
