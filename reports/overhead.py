"""What a policy costs over the same calls written by hand: `python reports/overhead.py`.

Writes overhead.md beside itself. Three measurements in interleaved rounds: the pipeline of `shapes`
with a stubbed denoiser, where nothing but bookkeeping is left; with stubbed blocks, where hooks on
the blocks work too; and the whole pipeline. The plan is fewer steps with diffusers' first-block
cache, which can be written by hand in two lines.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from planner.catalog.reader import workload_for
from planner.measure.statistics import quantile
from planner.plans.plan import Plan
from planner.run.apply import put_on
from planner.run.pipeline import PipelineSource, case_of, load_pipeline

STEPS = 25
THRESHOLD = 0.12
PROMPT = "a red circle"


def by_hand(pipe: Any, call: dict[str, Any], cache: bool) -> Callable[[], float]:
    """Return a timed call as a person would write it."""
    from diffusers.hooks import FirstBlockCacheConfig

    def run() -> float:
        if cache:
            pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=THRESHOLD))
        try:
            began = time.perf_counter()
            pipe(PROMPT, generator=torch.Generator().manual_seed(0), output_type="latent",
                 **call | {"num_inference_steps": STEPS})  # fmt: skip
            return time.perf_counter() - began
        finally:
            if cache:
                pipe.transformer.disable_cache()

    return run


def by_policy(pipe: Any, case: Any, cache: bool) -> Callable[[], float]:
    """Return a timed plain call under the same plan, put on as a policy is."""
    passes: dict[str, dict[str, Any]] = {"steps": {"num_inference_steps": STEPS}}
    if cache:
        passes["first_block_cache"] = {"threshold": THRESHOLD}
    plan = Plan.of(passes)

    def run() -> float:
        with put_on(pipe, plan, case):
            began = time.perf_counter()
            pipe(PROMPT, generator=torch.Generator().manual_seed(0), output_type="latent")
            return time.perf_counter() - began

    return run


def rounds(
    ours: Callable[[], float], theirs: Callable[[], float], count: int
) -> list[tuple[float, float]]:
    """Time both in turn, the first of each pair alternating; two pairs warm up."""
    pairs = []
    for index in range(count + 2):
        if index % 2:
            pairs.append((ours(), theirs()))
        else:
            hand = theirs()
            pairs.append((ours(), hand))
    return pairs[2:]


def interval(values: list[float]) -> str:
    """Return the median with the quartiles."""
    return f"{median(values):.4g} ({quantile(values, 0.25):.4g} to {quantile(values, 0.75):.4g})"


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stubbed-rounds", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    source = PipelineSource(model="shapes", device="cpu")
    workload = workload_for("shapes")
    assert workload is not None
    pipe = load_pipeline(source)
    case = case_of(pipe, source, workload)
    call = dict(workload.call)
    whole = rounds(by_policy(pipe, case, True), by_hand(pipe, call, True), args.rounds)
    transformer = pipe.transformer
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        block.forward = lambda hidden_states, encoder_hidden_states, *_, **__: (
            encoder_hidden_states, hidden_states
        )  # fmt: skip
    hooked = rounds(by_policy(pipe, case, True), by_hand(pipe, call, True), args.stubbed_rounds)
    transformer.forward = lambda hidden_states, **_: (torch.zeros_like(hidden_states),)
    stub = rounds(by_policy(pipe, case, False), by_hand(pipe, call, False), args.stubbed_rounds)
    forwards = STEPS * workload.forwards_per_step

    def more(pairs: list[tuple[float, float]]) -> str:
        return interval([(ours - hand) / forwards * 1e6 for ours, hand in pairs])

    ratio = [ours / hand for ours, hand in whole]
    text = REPORT.format(
        device=case.device.name, threads=case.device.threads, python=platform.python_version(),
        torch=torch.__version__, steps=STEPS, threshold=THRESHOLD, forwards=forwards,
        stubbed=len(stub), extra=more(stub), hooked=more(hooked),
        call=interval([hand * 1e3 for _, hand in stub]),
        whole=len(whole), ratio=interval(ratio), command=f"python {Path(__file__).parent.name}/"
        f"{Path(__file__).name} --stubbed-rounds {args.stubbed_rounds} --rounds {args.rounds}",
    )  # fmt: skip
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


REPORT = """\
# What applying a policy costs

A policy's calls against the same calls written by hand, in interleaved rounds, on {device} with
{threads} thread(s), Python {python}, torch {torch}. Medians, with quartiles in brackets.

| what | plan | rounds | result |
|---|---|--:|---|
| stubbed denoiser, microseconds more a forward | `steps({steps})` | {stubbed} | {extra} |
| stubbed blocks, microseconds more a forward | `steps({steps})`, `first_block_cache({threshold})` \
| {stubbed} | {hooked} |
| stubbed denoiser, milliseconds a call by hand, {forwards} forwards | | {stubbed} | {call} |
| whole pipeline, policy over by hand | `steps({steps})`, `first_block_cache({threshold})` \
| {whole} | {ratio} |

Reproduce: `{command}`
"""

if __name__ == "__main__":
    main()
