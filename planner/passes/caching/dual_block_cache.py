"""Run the first and last blocks, and reuse or forecast what the middle ones added.

What it does: cache-dit's DBCache. The first `fn` blocks always run; if their residual differs from
that of the last computed step by less than the threshold, what the middle blocks added then is
added again, as it was or as a calibrator forecasts it, and the last `bn` blocks run as usual. The
first steps are all computed, skips in a row can be capped, and a mask of cache-dit's can say which
steps may be reused at all, or (static) which are. A branch decides for itself.
When it helps: long schedules of deep models, where neighbouring steps are alike; plans that come
from cache-dit, SGLang, vLLM-Omni or TensorRT-LLM, whose settings have the same meaning here.
What it costs: `fn` and `bn` blocks at every step; one scalar read a forward, unless the mask is
static; two residuals a branch and list, with a calibrator five or seven, with dmd about fifty.
When not: 8 steps or fewer (Qwen-Image: 3); `bn` beside a calibrator, which both correct the same
error; skipped layers of guidance; with ControlNet, VACE or Animate, whose additions between blocks
a skipped step would add twice; with another cache on the same denoiser.
Source: vipshop/cache-dit 1.5 (Apache-2.0), an optional library: pip install cache-dit. Calibrators:
TaylorSeer (arXiv 2503.06923), dynamic mode decomposition, FoCa (arXiv 2508.16211).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.case.work import Phase, Work
from planner.case.workload import Workload
from planner.hooks.block_ends import holding, skipping_between
from planner.hooks.clock import StepClock
from planner.hooks.dual_blocks import DENOISERS, Listed, dual_blocks, masked
from planner.hooks.recorder import Forward
from planner.hooks.reuse import (
    DISTURBED,
    FEW_STEPS,
    Masks,
    computed_share,
    nothing_between,
    reused_none,
    steps_of,
)
from planner.passes.base import (
    Context,
    Domain,
    Family,
    Fidelity,
    Need,
    Pass,
    Settings,
    Stage,
    Statistics,
    Undo,
    knob,
)
from planner.passes.needs import narrowed

Change = Callable[[int, int], float] | None


class DualBlockCacheSettings(Settings):
    """Which blocks always run, when the others are reused, and how; cache-dit's names behind."""

    fn: int = knob(8, "blocks at the start of a list that always run: Fn_compute_blocks",
                   low=1, high=16, step=1, least=1, most=1000)  # fmt: skip
    bn: int = knob(0, "blocks at the end of a list that always run: Bn_compute_blocks",
                   choices=(0, 1, 2, 4, 8), least=0, most=1000)  # fmt: skip
    threshold: float = knob(
        0.08, "relative change of the first blocks' residual below which the middle is reused; "
        "0 never reuses, 1 always: residual_diff_threshold",
        low=0.02, high=0.8, log=True, least=0.0, most=1.0,
    )  # fmt: skip
    warmup: int = knob(8, "steps at the start that are all computed: max_warmup_steps",
                       low=1, high=12, step=1, least=0, most=1000)  # fmt: skip
    most: int = knob(
        0, "steps that may be reused in a row, 0 for any number: max_continuous_cached_steps",
        choices=(0, 1, 2, 3, 4, 6), least=0, most=1000,
    )  # fmt: skip
    calibrator: Literal["none", "taylorseer", "dmd", "foca"] = knob(
        "none", "how the middle is forecast rather than reused",
        choices=("none", "taylorseer", "dmd", "foca"),
    )  # fmt: skip
    order: int = knob(1, "order of taylorseer: taylorseer_order", choices=(1, 2), least=1, most=4)
    mask: Literal["none", "slow", "medium", "fast", "ultra"] = knob(
        "none", "cache-dit's mask of the steps that may be reused: steps_mask",
        choices=("none", "slow", "medium", "fast", "ultra"),
    )  # fmt: skip
    policy: Literal["dynamic", "static"] = knob(
        "dynamic", "whether the mask's other steps are compared (dynamic) or reused (static)",
        choices=("dynamic", "static"),
    )  # fmt: skip


def _mask(settings: DualBlockCacheSettings, steps: int, first: int) -> str | None:
    """Return the mask of a stretch that begins at a step, where nothing is kept yet."""
    if settings.mask == "none":
        return None
    return "1" + masked(settings.mask, steps)[first + 1 :]


def _maker(settings: DualBlockCacheSettings, clock: StepClock) -> Any:
    """Return what makes a fresh context for a list: cache-dit's settings at this step."""
    from cache_dit.caching import CachedContext, DBCacheConfig

    def make(one: Listed) -> Any:
        mask = _mask(settings, clock.total, clock.step)
        first, last = one.ends(settings.fn, settings.bn)
        config = DBCacheConfig(
            Fn_compute_blocks=first, Bn_compute_blocks=last, max_warmup_steps=settings.warmup,
            residual_diff_threshold=settings.threshold,
            max_continuous_cached_steps=settings.most or -1,
            enable_separate_cfg=False,  # every branch has a context of its own
            steps_computation_mask=None if mask is None else list(map(int, mask)),
            steps_computation_policy=settings.policy,
        )  # fmt: skip
        return CachedContext(name=one.name, cache_config=config,
                             calibrator_config=_calibrator(settings, one))  # fmt: skip

    return make


def _calibrator(settings: DualBlockCacheSettings, one: Listed) -> Any:
    from cache_dit import caching

    kinds = {
        "taylorseer": partial(caching.TaylorSeerCalibratorConfig, taylorseer_order=settings.order),
        "dmd": caching.DMDCalibratorConfig,
        "foca": caching.FoCaCalibratorConfig,
    }
    kind = kinds.get(settings.calibrator)  # of text that is never returned cache-dit knows nothing
    return kind and kind(enable_encoder_calibrator=one.returns_text)


def apply(pipeline: Any, settings: DualBlockCacheSettings, context: Context) -> Undo:
    """Put cache-dit's blocks on the denoisers. Raises `UsageError` where a cache is on already."""
    return dual_blocks(pipeline, _maker(settings, context.clock), context.clock,
                       context.statistics)  # fmt: skip


def probe(forward: Forward) -> Any:
    """Return what the first block added to the image tokens: what is compared where `fn` is 1."""
    return forward.first


def decided(
    settings: DualBlockCacheSettings, steps: int, first: int, last: int, change: Change = None
) -> str | None:
    """Return the mask that the rule chooses from step `first` to `last` of a schedule.

    `change` tells by how much a step differs from an earlier one. None where the rule would have
    to know that and it is not told.
    """
    mask, found = _mask(settings, steps, first), ""
    warm = settings.warmup if mask is None else min(settings.warmup, len(mask.partition("0")[0]))
    for step in range(last - first):
        runs: bool | None = step == 0 or step < warm or (mask is not None and mask[step] == "1")
        if not runs and (mask is None or settings.policy == "dynamic"):
            runs = _compared(settings, found, change)
        if runs is None:
            return None
        found += "1" if runs else "0"
    return found


def _compared(settings: DualBlockCacheSettings, found: str, change: Change) -> bool | None:
    """Tell whether a step that may be reused is computed; None where only a change would tell."""
    computed = found.rindex("1")
    if settings.most and len(found) - 1 - computed >= settings.most:
        return True
    if not 0 < settings.threshold < 1:
        return settings.threshold <= 0
    return None if change is None else not change(len(found), computed) < settings.threshold


def masks(settings: DualBlockCacheSettings, telemetry: Telemetry) -> Masks:
    """Return the steps at which the middle blocks would run in the recorded calls."""
    steps = telemetry.steps
    return [{branch: decided(settings, steps, 0, steps, series.change) or ""
             for branch, series in seen.items()}
            for seen in telemetry.series("dual_block_cache")]  # fmt: skip


def effect(work: Work, settings: DualBlockCacheSettings, telemetry: Telemetry | None) -> Work:
    """Lower the share of the middle blocks; exact for static masks and thresholds of 0 and 1.

    Else telemetry of the first block's residual tells it, which is that of the first `fn` blocks
    where they are one; without it only what is held is sure. Of two experts, each of which begins
    anew, telemetry knows nothing.
    """
    steps, begun = steps_of(work), dict[str | None, int]()
    names = [phase.branch for phase in work.phases if phase.name == "denoise"]
    share_of = computed_share(masks(settings, telemetry.at(steps)) if telemetry else ())

    def cached(phase: Phase) -> Phase:
        if phase.name != "denoise":
            return phase
        first, last = (begun.get(phase.branch, 0) + calls for calls in (0, round(phase.calls)))
        begun[phase.branch] = last
        mask, alone = decided(settings, steps, first, last), names.count(phase.branch) == 1
        share = mask.count("1") / len(mask) if mask else share_of(phase) if alone else None
        return phase if share is None else skipping_between(phase, settings.fn, settings.bn, share)

    return holding(work.mapped(cached), 1 + _held(settings))


def _held(settings: DualBlockCacheSettings) -> int:
    """Return how many tensors stand for what the middle blocks added: derivatives, snapshots.

    dmd holds six snapshots and four derivatives, and the modes of its last fit in complex128:
    five of them take as much as forty tensors of two bytes.
    """
    orders = {"taylorseer": 2 * (settings.order + 1), "foca": 4, "dmd": 6 + 4 + 40}
    return orders.get(settings.calibrator, 1)


def observe(
    settings: DualBlockCacheSettings, statistics: Statistics, workload: Workload
) -> str | None:
    """Answer a sentence if nothing was reused."""
    return reused_none("dual_block_cache", settings.threshold, statistics)


def narrow(case: Case, telemetry: Telemetry | None) -> dict[str, Domain]:
    """Return what blocks and steps allow, and the thresholds at which something changes."""
    blocks, steps = case.model.traits.blocks, case.workload.steps
    whole = partial(Domain, low=1, step=1, integer=True)
    found = {
        "fn": whole(high=max(2, min(16, blocks // 2))),
        "bn": Domain(choices=tuple(one for one in (0, 1, 2, 4, 8) if one <= blocks // 4)),
        "warmup": whole(high=max(2, min(12, steps // 2))),
    }
    if telemetry is None:
        return found
    return found | narrowed("threshold", telemetry.at(steps), lambda value, seen: masks(
        DualBlockCacheSettings(threshold=value, warmup=1), seen), most=1.0)  # fmt: skip


def unfit(case: Case, settings: DualBlockCacheSettings) -> str | None:
    """Answer a sentence if two corrections clash, or if nothing is left to reuse."""
    name, blocks, steps = "dual_block_cache", case.model.traits.blocks, case.workload.steps
    if settings.bn and settings.calibrator != "none":
        said = f"{name} corrects what it reuses by last blocks or by a calibrator"
        return f"{said}; bn is {settings.bn} and calibrator {settings.calibrator}"
    if settings.fn + settings.bn >= blocks:
        return f"{name} leaves none of {blocks} blocks at fn {settings.fn} and bn {settings.bn}"
    if settings.warmup >= steps:
        return f"{name} leaves none of {steps} steps at warmup {settings.warmup}"
    return None


def _known_denoiser(case: Case) -> str | None:
    name = case.model.traits.denoiser_class
    if name in DENOISERS:
        return None
    return f"dual_block_cache needs blocks that are all called alike; of {name} this is not known"


def _enough_steps(case: Case) -> str | None:
    least = 4 if case.model.traits.denoiser_class.startswith("QwenImage") else FEW_STEPS + 1
    said = f"dual_block_cache needs at least {least} steps; this call has {case.workload.steps}"
    return said if case.workload.steps < least else None


def _every_layer(case: Case) -> str | None:
    skipped = case.workload.call.get("skip_guidance_layers")
    said = f"dual_block_cache needs every block called; skip_guidance_layers is {skipped}"
    return said if skipped else None


_SOURCE = "vipshop/cache-dit 1.5.3"

PASS = Pass(
    name="dual_block_cache",
    family=Family.CACHING,
    stage=Stage.CACHE,
    fidelity=Fidelity.APPROXIMATE,
    source=_SOURCE,
    settings=DualBlockCacheSettings,
    owns=("denoiser.step_reuse",),
    imports=("cache-dit>=1.5.3,<1.6",),
    needs=(
        Need(_known_denoiser, f"{_SOURCE}: block adapters; each class was run here"),
        Need(nothing_between("dual_block_cache"), DISTURBED),
        Need(_enough_steps, f"{_SOURCE}: with few steps its benchmarks hold for Qwen-Image alone"),
        Need(_every_layer, "diffusers SD3Transformer2DModel: skip_layers counts blocks"),
    ),
    effect=effect,
    probe=probe,
    masks=masks,
    apply=apply,
    observe=observe,
    narrow=narrow,
    unfit=unfit,
    seeds=(
        {"fn": 8, "warmup": 8, "threshold": 0.08},
        {"fn": 1, "warmup": 4, "threshold": 0.24, "most": 3},  # TensorRT-LLM, SGLang
        {"fn": 1, "warmup": 4, "threshold": 0.24, "most": 3, "calibrator": "taylorseer"},
        {"fn": 1, "mask": "fast", "policy": "static", "calibrator": "taylorseer"},
    ),
    batch_invariant=False,
)
