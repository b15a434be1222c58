"""What a cache would compute, from what reference calls showed: no forward is run for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.case.case import Case
from planner.case.noun import Noun
from planner.case.telemetry import Telemetry
from planner.case.work import Work
from planner.hooks.geometry import error_of, errors, gram
from planner.passes import registry
from planner.passes.base import Domain, Pass, domains


class Simulated(Noun):
    """One cache with settings, over the recorded calls.

    `masks` are by call and branch: 1 computed, 0 skipped; `computed` is the mean number of
    computed steps of a branch, `low` and `high` that of the calls with fewest and most; `flops`
    the work left of the whole call. `error` tells settings apart, in units of the latents: by how
    much forecasts of the denoiser's output at the skipped steps would move them; None where the
    denoiser's output was not recorded, and where groups of blocks are skipped each by itself.
    """

    name: str
    settings: dict[str, Any]
    masks: tuple[dict[str, str], ...]
    computed: float
    low: float
    high: float
    flops: float | None
    error: float | None


def simulate(
    name: str, settings: Mapping[str, Any], telemetry: Telemetry, work: Work | None
) -> Simulated | None:
    """Return what a cache would do in the recorded calls, None for a pass that cannot tell.

    `work` is that of the untouched call, where it is known. Raises `UsageError` for settings that
    the pass does not take.
    """
    one, parsed = registry.get(name), registry.settings_of(name, dict(settings))
    found = one.masks(parsed, telemetry) if one.masks else ()
    counts = [sum(mask.count("1") for mask in run.values()) / len(run) for run in found if run]
    if not counts:
        return None
    left = None if work is None else one.effect(work, parsed, telemetry).flops
    return Simulated(
        name=name, settings=parsed.model_dump(mode="json"),
        masks=tuple(dict(run) for run in found), computed=sum(counts) / len(counts),
        low=min(counts), high=max(counts), flops=left,
        error=_error(found, telemetry, getattr(parsed, "order", 0)),
    )  # fmt: skip


def deciding(one: Pass, case: Case, telemetry: Telemetry) -> tuple[str, Domain]:
    """Return the setting that decides what a cache skips, with where it changes anything.

    That is the one whose range telemetry tells, else a threshold, else the first that is a number.
    """
    declared = {name: domain for name, domain in domains(one.settings).items()
                if domain.choices is None}  # fmt: skip
    told = one.told(case, telemetry)
    usual = "threshold" if "threshold" in declared else next(iter(declared))
    name = next((one for one in told if one in declared), usual)
    narrowed = (one.narrow(case, None) if one.narrow else {}) | told
    return name, narrowed.get(name, declared[name])


def inert(one: Pass, case: Case, telemetry: Telemetry) -> str | None:
    """Answer a sentence for a cache that skips nothing in the recorded calls, however it is set."""
    if one.masks is None:
        return None
    setting, domain = deciding(one, case, telemetry)
    ends = [registry.settings_of(one.name, {setting: round(end) if domain.integer else end})
            for end in (domain.low, domain.high) if end is not None]  # fmt: skip
    found = [mask for end in ends for run in one.masks(end, telemetry.at(case.workload.steps))
             for mask in run.values()]  # fmt: skip
    if not found or any("0" in mask for mask in found):
        return None
    return f"{one.name} skips nothing in the recorded calls at any {setting}"


def _error(masks: Any, telemetry: Telemetry, order: int) -> float | None:
    """Return the error of the masks' forecasts, the mean over calls and branches."""
    found = []
    for run, seen in zip(masks, telemetry.runs, strict=True):
        for branch, mask in run.items():
            if branch in seen and mask.startswith("1"):
                grams = [gram(seen[branch]["output"])]
                of = errors(grams, telemetry.places, min(order, 1), early=0.5)
                found.append(error_of(of, mask))
    return sum(found) / len(found) if found else None

