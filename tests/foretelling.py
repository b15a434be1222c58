"""A made-up model and device whose plans are easy to foretell, and trials of them."""

from __future__ import annotations

from typing import Any

from planner.case.outcome import Measured, Outcome
from planner.case.work import Operation, Phase, Work
from planner.plans.plan import Plan
from planner.prediction.roofline import Speeds
from planner.trials.trial import Trial
from planner.tuning.footing import Footing
from planner.tuning.foresight import Foresight, Prediction
from tests.page_study import plan
from tests.test_search import REFERENCE

SPEEDS = Speeds(products={"float32": 1e9}, convolution=1.0, attention={"": 1.0},
                bandwidth=1e9, cached=1.0, cache=1.0, launch=1e-12, ramp=0.0, call=0.0, step=0.0,
                link=1e9)  # fmt: skip
STEPS = 50


def work() -> Work:
    """Return what a call with two branches computes: all but a twentieth of it in the denoiser."""

    def phase(name: Any, calls: float, flops: float, branch: str | None = None) -> Phase:
        product = Operation(path="x", kind="linear", flops=flops, bytes=1.0, dtype="float32",
                            block=name == "denoise")  # fmt: skip
        return Phase(name=name, branch=branch, calls=calls, operations=(product,))

    return Work(phases=(
        phase("encode", 1, 5e6), phase("denoise", STEPS, 2e6, "cond"),
        phase("denoise", STEPS, 2e6, "uncond"), phase("decode", 1, 5e6),
    ))  # fmt: skip


def foresight(spread: float = 1.4) -> Foresight:
    return Foresight(Footing(work(), SPEEDS, SPEEDS, spread), REFERENCE)


def measured(ratio: float, counts: dict[str, dict[str, Any]] | None = None) -> Measured:
    return Measured(seconds=(ratio * REFERENCE,) * 3, ratios=(ratio,) * 3, lpips=(0.05,) * 3,
                    statistics=counts or {})  # fmt: skip


def trial(of: Plan, outcome: Outcome, expected: Prediction | None = None, number: int = 0) -> Trial:
    return Trial(number=number, plan=of, outcome=outcome, origin="seed", seconds=1.0,
                 predicted=expected.figures if expected else {})  # fmt: skip


def taught(count: int, factor: float = 1.0) -> Foresight:
    """Return a predictor that has seen trials of fewer steps, each `factor` as long as foretold."""
    found = foresight()
    for steps in range(20, 20 + count):
        of, expected = plan(steps), found.predict(plan(steps))
        assert expected is not None
        ratio = factor * foresight_ratio(steps)
        found.learn(trial(of, measured(ratio), expected))
    return found


def foresight_ratio(steps: int) -> float:
    return (10 + 4 * steps) / (10 + 4 * STEPS)
