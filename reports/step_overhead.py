"""What a cache costs at a step that it computes: `python reports/step_overhead.py`.

Writes step_overhead.md beside itself. Each cache is put on the pipeline of `shapes` with settings
that reuse nothing, or as little as they can; its calls alternate with untouched ones. A step lasts
from one `callback_on_step_end` to the next, so that hooks, clock and guidance are all inside; the
first is left out, for it encodes the prompt, and so is every step that a branch reused. Seconds are
those that the one thread computed: nothing here waits, and what else runs on the machine counts
little. What a cache adds is some thousandth of a step, less than two equal calls differ by; it is
therefore measured with stubbed blocks, where hooks do the same work on tensors of the same sizes,
and held against a step of the whole pipeline. Run it with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import gc
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import torch

from planner.catalog.reader import workload_for
from planner.hooks.clock import StepClock
from planner.measure.statistics import median_upper, quantile
from planner.passes import registry
from planner.passes.base import Artifact, Context, Family, Pass
from planner.plans.plan import BASELINE, Plan
from planner.run.apply import put_on
from planner.run.calls import reference_call
from planner.run.pipeline import PipelineSource, case_of, load_pipeline
from planner.trials.reference import ReferenceCalls

STEPS = 10
PROMPT = "a red circle"
NEVER: dict[str, dict[str, Any]] = {
    "first_block_cache": {"threshold": 0.0},
    "mag_cache": {"threshold": 0.0},
    "step_mask": {"share": 1.0},
    "taylor_seer": {"interval": 1},
    "tea_cache": {"threshold": 0.0},
}
"""Settings that reuse least; a cache that is not named here runs with its defaults."""


class Pair(NamedTuple):
    """Seconds of each computed step of a call, and of the same steps of the call beside it."""

    ours: tuple[float, ...]
    theirs: tuple[float, ...]


class Subject:
    """The pipeline with its case."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        source, workload = PipelineSource(model="shapes", device="cpu"), workload_for("shapes")
        assert workload is not None
        self.pipe = load_pipeline(source)
        call = dict(workload.call) | {"num_inference_steps": STEPS}
        workload = workload.model_copy(update={"call": call})
        self.case = case_of(self.pipe, source, workload)
        self.call = reference_call(workload, [PROMPT])
        self.memo: dict[str, Any] = {}
        self.seen: dict[Any, Any] = {}
        gc.collect()
        gc.freeze()  # what is loaded stays: no later collection need look at it

    def steps(self) -> list[float]:
        """Return the seconds of every step but the first."""
        stamps: list[float] = []

        def stamp(*_: Any) -> dict[str, Any]:
            stamps.append(time.thread_time())
            return {}

        gc.collect()
        self.pipe(**self.call, generator=torch.Generator().manual_seed(0), output_type="latent",
                  callback_on_step_end=stamp)  # fmt: skip
        return [b - a for a, b in pairwise(stamps)]

    def learned(self, one: Pass) -> dict[str, Artifact]:
        """Return what a cache learns on the whole pipeline, if it learns."""
        if one.calibrate is None:
            return {}
        clock = StepClock()
        detach = clock.attach(self.pipe.scheduler)

        def render() -> None:
            with clock.call():
                self.steps()

        try:
            context = Context(case=self.case, clock=clock)
            calls = ReferenceCalls(self.pipe, clock, render, self.case, self.seen, "untouched")
            return {one.name: one.calibrate(self.pipe, one.settings(), context, calls)}
        finally:
            detach()

    @contextmanager
    def stubbed(self) -> Iterator[None]:
        """Let every block do next to nothing, and yet change what it is given."""
        transformer = self.pipe.transformer
        blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
        for block in blocks:
            block.forward = lambda hidden_states, encoder_hidden_states, *_, **__: (
                encoder_hidden_states * 1.01, hidden_states * 1.01
            )  # fmt: skip
        try:
            yield
        finally:
            for block in blocks:
                del block.forward

    def pairs(self, plan: Plan, learned: dict[str, Artifact], rounds: int) -> list[Pair]:
        """Alternate calls under a plan with untouched ones; the first pair warms up."""
        found = []
        for index in range(rounds + 1):
            before = self.steps() if index % 2 else []
            with put_on(self.pipe, plan, self.case, learned, self.memo) as handle:
                ours, counted = self.steps(), handle.stats.values()
            theirs = before or self.steps()
            masks = [str(value) for counters in counted for key, value in counters.items()
                     if key.startswith("mask_")]  # fmt: skip
            kept = [i for i in range(STEPS - 1) if all(mask[i + 1] == "1" for mask in masks)]
            if index:
                found.append(Pair(tuple(ours[i] for i in kept), tuple(theirs[i] for i in kept)))
        return found


def spread(values: list[float], digits: str) -> str:
    """Return the median with the quartiles."""
    low, middle, high = (quantile(values, share) for share in (0.25, 0.5, 0.75))
    return f"{middle:{digits}} ({low:{digits}} to {high:{digits}})"


def row(plan: Plan, stubbed: list[Pair], whole: list[Pair]) -> str:
    """Return a plan's line of the table."""
    extra = [(fmean(pair.ours) - fmean(pair.theirs)) * 1e6 for pair in stubbed]
    step = median(second for pair in whole for second in pair.theirs) * 1e6
    ratios = [sum(pair.ours) / sum(pair.theirs) for pair in whole]
    return (
        f"| `{plan}` | {len(stubbed[0].ours)} "
        f"| {spread(extra, '.0f')} | {step / 1e3:.1f} | {median(extra) / step:.2%} "
        f"| {median_upper(extra, 0.95) / step:.2%} | {spread(ratios, '.3f')} |"
    )


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stubbed-rounds", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", metavar="PASS", help="print this cache's row, write nothing")
    args = parser.parse_args()
    subject = Subject()
    caches = [one for one in map(registry.get, registry.names())
              if one.family is Family.CACHING and not one.missing(subject.case)
              and args.only in (None, one.name)]  # fmt: skip
    plans = ({} if args.only else {BASELINE: {}}) | {
        Plan.of({one.name: NEVER.get(one.name, {})}): subject.learned(one) for one in caches
    }
    rows = []
    for plan, learned in plans.items():
        with subject.stubbed():
            stubbed = subject.pairs(plan, learned, args.stubbed_rounds)
        rows.append(row(plan, stubbed, subject.pairs(plan, learned, args.rounds)))
        print(rows[-1], flush=True)
    if args.only:
        return
    device = subject.case.device
    text = REPORT.format(
        device=device.name, threads=device.threads, python=platform.python_version(),
        torch=torch.__version__, steps=STEPS, rows="\n".join(rows),
        stubbed=args.stubbed_rounds, whole=args.rounds,
        command=f"OMP_NUM_THREADS=1 python reports/{Path(__file__).name} "
        f"--stubbed-rounds {args.stubbed_rounds} --rounds {args.rounds}",
    )  # fmt: skip
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


REPORT = """\
# What a cache costs at a step that it computes

Calls of {steps} steps under each cache alternate with untouched ones: the pipeline of `shapes`,
with guidance in a second forward, on {device} with {threads} thread(s), Python {python}, torch
{torch}. Settings are such that as little as possible is reused, and only computed steps are
counted, in processor time. Medians, with quartiles in brackets. `baseline` is the empty plan: what
the step clock and the handle cost alone.

| plan | steps | µs more a step | ms a step untouched | share | at most | whole pipeline |
|---|--:|---|--:|--:|--:|---|
{rows}

Microseconds are from {stubbed} pairs of calls with stubbed blocks, where nothing hides them: hooks
do what they do, on tensors of the same sizes. Their share is of a step of the whole pipeline, with
a one-sided 95 % bound by order statistics. The last column is the ratio of {whole} pairs of calls
of the whole pipeline, which says how much less certain that way would be.

Reproduce: `{command}`
"""

if __name__ == "__main__":
    main()
