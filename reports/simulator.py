"""How well a cache's steps and seconds are foretold: `python reports/simulator.py`.

Writes simulator.md beside itself. Reference calls of `shapes` are recorded once. From the recording
alone every legal cache is simulated at settings spread over the interval where it changes anything,
and its call's share of the untouched one is predicted as a study does before its first trial. Then
each setting is really run, on the recorded prompts and on others, in rounds with untouched calls.
Run it with OMP_NUM_THREADS=1 and nothing beside it.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import torch

from planner.case.prompts import Prompt
from planner.catalog.reader import prompts_for, workload_for
from planner.cli.progress import Bar
from planner.passes.base import Pass
from planner.plans.graph import build
from planner.plans.plan import BASELINE, Plan
from planner.prediction.cache_simulator import deciding, simulate
from planner.run.apply import put_on
from planner.run.pipeline import PipelineSource
from planner.tuning.bench.planned import calibrated, reference_calls
from planner.tuning.bench.rig import Rig
from planner.tuning.footing import footing
from planner.tuning.foresight import Foresight
from planner.tuning.prompts import split_lists
from planner.tuning.recordings import Recordings

RECORDED = 2
PLACES = (0.3, 0.7)
"""Where in the interval of a setting it is tried."""


class Real(NamedTuple):
    """One call under a cache: computed steps of each branch, and its share of untouched calls."""

    computed: dict[str, int]
    share: float


class Subject:
    """The pipeline, with what its recorded calls say."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        workload, texts = workload_for("shapes"), prompts_for("shapes", "tune")
        unseen = prompts_for("shapes", "certify")
        assert workload is not None and texts is not None and unseen is not None
        source = PipelineSource(model="shapes", device="cpu")
        self.rig = Rig(source, workload, folder)
        found = split_lists(texts, unseen, 0)
        self.recorded, self.others = found.search[:RECORDED], found.certify
        with reference_calls(self.rig, BASELINE, {}, self.recorded) as (calls, _):
            self.telemetry = calls.telemetry()
        with Bar() as bar:
            stands = footing(source, self.rig.case, folder, bar)
        assert stands is not None, "this device is not calibrated"
        self.work = stands.work
        seconds = median(self.rig.untouched(self.recorded[0])[0] for _ in range(3))
        self.foresight = Foresight(stands, seconds, Recordings.of(self.telemetry))
        self.reference = self._beside = seconds

    def real(self, plan: Plan, learned: Any, prompts: Sequence[Prompt]) -> list[Real]:
        """Run the plan on each prompt, all between two untouched calls."""
        called, before = [], self._beside
        for prompt in prompts:
            with put_on(self.rig.pipeline, plan, self.rig.case, learned, self.rig.memo) as handle:
                seconds, _ = self.rig.call(prompt, {})
                (counted,) = handle.stats.values()
            computed = {key.removeprefix("computed_"): int(str(value))
                        for key, value in counted.items() if key.startswith("computed_")}
            called.append((computed, seconds))
        self._beside = self.rig.untouched(prompts[0])[0]
        untouched = (before + self._beside) / 2
        return [Real(computed, seconds / untouched) for computed, seconds in called]


def settings_of(one: Pass, subject: Subject) -> list[dict[str, Any]]:
    """Return settings spread over the interval where the cache changes anything."""
    name, domain = deciding(one, subject.rig.case, subject.telemetry)
    low, high = domain.low or 0.0, domain.high or 0.0
    values = [low * (high / low) ** p if domain.log else low + (high - low) * p for p in PLACES]
    if domain.step:
        values = [low + round((value - low) / domain.step) * domain.step for value in values]
    return [{name: round(value) if domain.integer else float(f"{value:.4g}")}
            for value in dict.fromkeys(values)]  # fmt: skip


def off(masks: Sequence[dict[str, str]], found: Sequence[Real]) -> str:
    """Say by how many steps each call and branch computed more than was foretold of it."""
    steps = [real.computed[branch] - mask.count("1")
             for run, real in zip(masks, found, strict=True) for branch, mask in run.items()]
    return f"{min(steps):+d} to {max(steps):+d}" if any(steps) else "exact"


def row(one: Pass, settings: dict[str, Any], subject: Subject, others: int) -> tuple[str, float]:
    """Simulate a setting, run it, and return its line with the error of its predicted share."""
    plan = Plan.of({one.name: settings})
    learned = {}
    if one.calibrate is not None:
        learned[one.name] = calibrated(subject.rig, plan, plan.passes[0], {}, subject.recorded)
    done = simulate(one.name, settings, subject.telemetry, subject.work)
    foretold = subject.foresight.predict(plan)
    assert done is not None and foretold is not None
    found = subject.real(plan, learned, [*subject.recorded, *subject.others[:others]])
    new = fmean(fmean(real.computed.values()) for real in found[RECORDED:])
    share, seen = foretold.seconds / subject.reference, median(real.share for real in found)
    setting = ", ".join(f"{name} {value:g}" for name, value in settings.items())
    line = (
        f"| `{one.name}` | {setting} | {done.computed:.1f} | {off(done.masks, found[:RECORDED])} "
        f"| {new - done.computed:+.1f} | {share:.3f} | {seen:.3f} | {share / seen - 1:+.1%} |"
    )
    return line, share / seen - 1


def main() -> None:
    """Record, simulate, run, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--others", type=int, default=1, help="prompts that were not recorded")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(Path(folder))
        caches = [one for one in build(subject.rig.case).legal if one.masks]
        rows, errors = [], []
        for one in caches:
            for settings in settings_of(one, subject):
                line, error = row(one, settings, subject, args.others)
                print(line, flush=True)
                rows.append(line)
                errors.append(abs(error))
    device = subject.rig.case.device
    text = REPORT.format(
        device=device.name, threads=device.threads, python=platform.python_version(),
        torch=torch.__version__, steps=subject.telemetry.steps, recorded=RECORDED,
        others=args.others, rows="\n".join(rows), middle=median(errors), worst=max(errors),
        within=sum(error <= 0.05 for error in errors), count=len(errors),
        command=f"OMP_NUM_THREADS=1 python reports/{Path(__file__).name} --others {args.others}",
    )  # fmt: skip
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


REPORT = """\
# How well a cache's steps and seconds are foretold

`shapes` at {steps} steps on {device} with {threads} thread(s), Python {python}, torch {torch}. From
{recorded} recorded calls, without another forward, each cache is simulated; then it is run on the
recorded prompts and on {others} more, between two untouched calls.

| cache | setting | computed steps | recorded prompts | others | share foretold | measured | error |
|---|---|--:|---|--:|--:|--:|--:|
{rows}

Computed steps are those foretold, the mean over branches. `recorded prompts` says by how many
steps any branch of any call differed from the simulation of that very call; `others` how many more
steps a branch computed, in the mean, where the simulation had not seen the prompt. Shares are
seconds over those of untouched calls; the prediction is that of a study before its first trial,
which nothing here has corrected. Of {count} settings {within} are within 5 %; the median error is
{middle:.1%}, the largest {worst:.1%}.

Reproduce: `{command}`
"""

if __name__ == "__main__":
    main()
