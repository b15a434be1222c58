"""Fewer denoising steps on the same schedule.

What it does: asks the scheduler for fewer, wider steps between the same noise levels; every other
argument of the call stays.
When it helps: always for time: latency falls in proportion. It is the first thing to compare any
other technique with, since a cached 50-step run must beat plain 25 steps to be worth its trouble.
What it costs: another trajectory. Images stay good but drift away from the reference ones, so a
distance to the reference rises quickly below half of the steps.
When not: a model distilled for a fixed step list, or a call that names its own sigmas.
Source: flow-matching Euler steps as in diffusers' FlowMatchEulerDiscreteScheduler; cached runs
against fewer steps: TeaCache, arXiv 2411.19108, section 4.
"""

from __future__ import annotations

from planner.case.case import Case
from planner.case.noun import Scalar
from planner.case.telemetry import Telemetry
from planner.case.work import Phase, Work
from planner.case.workload import Workload
from planner.passes.base import Domain, Family, Fidelity, Need, Pass, Settings, Stage, knob

FEWEST = 4
"""Below this an undistilled model draws no picture."""


class StepsSettings(Settings):
    """How many steps."""

    num_inference_steps: int = knob(
        25, "denoising steps of one call", low=FEWEST, high=50, step=1, least=1, most=1000
    )


def _leaves_room(case: Case) -> str | None:
    if case.workload.steps > FEWEST:
        return None
    return (
        f"steps needs a reference call of more than {FEWEST} steps; "
        f"this one has {case.workload.steps}"
    )


def _chooses_steps(case: Case) -> str | None:
    named = [name for name in ("sigmas", "timesteps") if name in case.workload.call]
    if not named:
        return None
    return f"steps needs a schedule that the scheduler chooses; this call names its {named[0]}"


def call(settings: StepsSettings, workload: Workload) -> dict[str, Scalar]:
    """Return the pipeline argument."""
    return {"num_inference_steps": settings.num_inference_steps}


def effect(work: Work, settings: StepsSettings, telemetry: Telemetry | None) -> Work:
    """Shorten every denoise phase; a branch that ran at part of the steps keeps that part."""
    branches: dict[str | None, float] = {}  # two experts share the steps of a branch
    for phase in work.phases:
        if phase.name == "denoise":
            branches[phase.branch] = branches.get(phase.branch, 0.0) + phase.calls
    longest = max(branches.values(), default=0.0)
    ratio = settings.num_inference_steps / longest if longest else 1.0

    def shorter(phase: Phase) -> Phase:
        if phase.name != "denoise":
            return phase
        return phase.model_copy(update={"calls": phase.calls * ratio})

    return work.mapped(shorter)


def narrow(case: Case, telemetry: Telemetry | None) -> dict[str, Domain]:
    """Return the step counts below the reference call's."""
    most = max(FEWEST, case.workload.steps - 1)
    return {"num_inference_steps": Domain(low=FEWEST, high=most, step=1, integer=True)}


_SOURCE = "diffusers FlowMatchEulerDiscreteScheduler.set_timesteps"

PASS = Pass(
    name="steps",
    family=Family.SAMPLING,
    stage=Stage.SAMPLING,
    fidelity=Fidelity.DIVERGENT,
    source=_SOURCE,
    settings=StepsSettings,
    owns=("sampling.steps",),
    needs=(Need(_leaves_room, _SOURCE), Need(_chooses_steps, _SOURCE)),
    effect=effect,
    call=call,
    narrow=narrow,
    seeds=({"num_inference_steps": 25}, {"num_inference_steps": 16}),
    batch_invariant=True,
)
