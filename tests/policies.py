"""Policies for tests, with every kind of field in use; no pipeline is needed to make them."""

from typing import Any

from planner.case.case import Case
from planner.case.device import Device
from planner.case.evidence import (
    Certificate,
    Distance,
    Evidence,
    Expected,
    LadderStep,
    Latency,
    Prediction,
    Quantity,
)
from planner.case.goal import Goal
from planner.case.hit_rate import HitRate
from planner.case.model import Component, Model, Traits
from planner.case.workload import Workload
from planner.plans.plan import Plan
from planner.policy.claim import Provenance
from planner.policy.file import PolicyFile

PLAN = Plan.of({"steps": {"num_inference_steps": 20}, "tea_cache": {"threshold": 0.18}})
LEARNED = {
    "coefficients": [498.651651, -283.781631, 55.8554382, -3.82021401, 1e-07],
    "range": [0.0125, 1e-05], "r2": 0.97, "points": 38,
}  # fmt: skip


def a_case() -> Case:
    return Case(
        model=Model(
            id="shapes",
            pipeline="FluxPipeline",
            components={
                "scheduler": Component(class_name="Euler", config="a" * 64),
                "transformer": Component(class_name="Flux", config="b" * 64, weights="1" * 64),
            },
            traits=Traits(
                denoiser="transformer", denoiser_class="FluxTransformer2DModel",
                block_classes=("FluxTransformerBlock", "FluxSingleTransformerBlock"),
                blocks=12, cacheable=True, skippable=True, compilable=True,
                branches=("cond", "uncond"),
            ),
        ),
        device=Device(
            kind="cpu", name="Intel(R) Xeon(R) CPU @ 2.80GHz", memory_bytes=8 << 30, threads=2,
            features=("avx2", "avx512_vnni"),
            libraries={"torch": "2.14.1", "diffusers": "0.42.1"},
        ),
        workload=Workload(
            call={
                "height": 128, "width": 128, "num_inference_steps": 50, "true_cfg_scale": 4.0,
                "negative_prompt": "", "max_sequence_length": 32, "negative_prompt_2": None,
            },
            guidance="sequential", prompts="c" * 64,
        ),
    )  # fmt: skip


def some_evidence(certified: bool = True) -> Evidence:
    certificate = Certificate(
        method="one-sided bounds on unseen prompts", alpha=0.05, alpha_each=0.05 / 6,
        finalists=(str(PLAN),), certified=str(PLAN), openings=1, prompts="d" * 64, n=32,
    )  # fmt: skip
    return Evidence(
        latency=Latency(
            baseline=Quantity(value=5.12, upper=5.3, unit="s"), noise_spread=0.021,
            tuned=Quantity(value=1.9, upper=1.954, unit="s"),
            ratio=Quantity(value=0.3711, upper=0.3817, unit="ratio"),
            p90_seconds=1.97, rounds=32, holds_while_baseline_within=5.24,
        ),
        lpips=Distance(
            mean=Quantity(value=0.0712, upper=0.0843, unit="LPIPS"), q50=0.068, q90=0.11,
            worst=0.163, n=32, noise_floor=0.0, share_under_cap_lower=0.77,
            implementation="lpips 0.1.4, alex",
            per_prompt=tuple(round(0.05 + 0.001 * i, 4) for i in range(32)),
        ),
        memory_baseline=Quantity(value=1 << 30, unit="bytes"),
        memory_tuned=Quantity(value=(1 << 30) + 4096, upper=(1 << 30) + 4096, unit="bytes"),
        load_seconds=1.25, apply_seconds=0.031, first_call_seconds=2.2, pays_off_after_images=1,
        statistics={"tea_cache": {"computed": 22, "reused": 18}},
        hit_rates={"tea_cache": HitRate(value=0.45, low=0.4, high=0.5, calls=32)},
        certificate=certificate if certified else None,
        protocol="whole pipeline calls: candidate and untouched call alternate", trials=41,
    )  # fmt: skip


def a_policy(**changes: Any) -> PolicyFile:
    """Return a certified policy; keyword arguments go over those of `PolicyFile.of`."""
    arguments: dict[str, Any] = {
        "status": "certified",
        "goal": Goal(budget_seconds=2.0, max_lpips=0.1, quality="balanced"),
        "case": a_case(),
        "evidence": some_evidence(),
        "artifacts": {"tea_cache": LEARNED},
        "provenance": Provenance(
            planner="0.1.0", time="2026-11-22T23:30:00+00:00",
            command="planner tune --budget 2s", commit="e" * 40, seeds={"search": 0},
            prompts={"certify": "d" * 64}, versions={"torch": "2.14.1"},
        ),
    }  # fmt: skip
    plan = changes.pop("plan", PLAN)
    return PolicyFile.of(plan, **arguments | changes)


def a_prediction() -> Prediction:
    return Prediction(
        baseline=Expected(value=5.0, low=4.0, high=6.2, unit="s"),
        tuned=Expected(value=2.0, low=1.6, high=2.5, unit="s"),
        memory_baseline=Quantity(value=2 << 30, unit="bytes"),
        memory_tuned=Quantity(value=1 << 30, unit="bytes"),
        rests_on="the datasheet alone", quality="unknown until measured", fit="f" * 64,
        ladder=(LadderStep(rung="untouched", plan="baseline", seconds=5.0),
                LadderStep(rung="steps", plan="steps(20)", seconds=2.0)),
    )  # fmt: skip


def a_predicted_policy(**changes: Any) -> PolicyFile:
    """Return a predicted policy; keyword arguments go over those of `PolicyFile.of`."""
    grounds = {"status": "predicted", "evidence": None, "prediction": a_prediction()}
    return a_policy(**grounds | changes)
