"""Skip the rest of the denoiser where its first block barely changes.

What it does: diffusers' own First Block Cache: the first block always runs; if what it adds
differs from the last computed step's by less than the threshold, the other blocks are skipped and
what they added then is added again.
When it helps: long schedules (28 steps and more) of deep models, where neighbouring steps are
alike; needs no calibration.
What it costs: one scalar read a forward, two residuals of memory a branch. There is no warm-up, no
cap on skips in a row, and the last step is not protected, so that large thresholds blur.
When not: 8 steps or fewer (never triggers); with ControlNet, VACE or Animate, whose additions
between blocks a skipped step would add twice; with another cache on the same denoiser.
Source: ParaAttention (chengzeyi/ParaAttention) and diffusers.hooks.first_block_cache.
"""

from __future__ import annotations

from typing import Any

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.case.work import Operation, Phase, Work
from planner.case.workload import Workload
from planner.hooks.blocks import denoiser_of, segments
from planner.hooks.branches import Hook, Tally, attach, drop_empty_registry
from planner.hooks.clock import StepClock
from planner.hooks.reuse import (
    DISTURBED,
    long_enough,
    nothing_between,
    reused_none,
    with_residuals,
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
    one_denoiser,
)


class FirstBlockCacheSettings(Settings):
    """When the first block counts as unchanged."""

    threshold: float = knob(
        0.08, "relative change of the first block's residual below which the rest is reused",
        low=0.02, high=0.6, log=True, least=0.0, most=10.0,
    )  # fmt: skip


class _Observer(Hook):
    """Counts, on the first block, what diffusers' hook has just decided, and drops stale state."""

    def __init__(self, leader: Any, tally: Tally, clock: StepClock) -> None:
        super().__init__()
        self._leader = leader
        self._tally = tally
        self._clock = clock
        self._seen: dict[str, int] = {}

    def restart(self) -> None:
        self._seen.clear()
        self._tally.restart()

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        # A branch that resumes after skipped steps must not reuse what is several steps old.
        last = self._seen.get(self.branch)
        if last is not None and self._clock.step > last + 1:
            self._leader.state_manager._state_cache.pop(self.branch, None)
        self._seen[self.branch] = self._clock.step
        return args, kwargs

    def post_forward(self, module: Any, output: Any) -> Any:
        state = self._leader.state_manager.get_state()
        self._tally.add(self.branch, computed=bool(state.should_compute))
        return output


def apply(pipeline: Any, settings: FirstBlockCacheSettings, context: Context) -> Undo:
    """Enable diffusers' cache and an observer around its leading hook."""
    from diffusers import FirstBlockCacheConfig
    from diffusers.hooks.first_block_cache import _FBC_LEADER_BLOCK_HOOK

    denoiser = denoiser_of(pipeline)
    blocks = [block for part in segments(denoiser) for block in part.blocks]
    try:
        denoiser.enable_cache(FirstBlockCacheConfig(threshold=settings.threshold))
    except BaseException:
        _clear(blocks)  # the library may have put its hooks on some blocks already
        raise
    leader = blocks[0]._diffusers_hook.get_hook(_FBC_LEADER_BLOCK_HOOK)
    observer = _Observer(leader, Tally(context.statistics, context.clock), context.clock)
    detach = attach(denoiser, blocks[0], observer, "planner_first_block_cache")

    def restart() -> None:
        leader.state_manager.reset()
        observer.restart()

    stop = context.clock.on_reset(restart)

    def undo() -> None:
        stop()
        detach()
        denoiser.disable_cache()
        for block in blocks:
            drop_empty_registry(block)

    return undo


def _clear(blocks: list[Any]) -> None:
    """Take the library's hooks off blocks where it did not get as far as its own clean-up."""
    from diffusers.hooks.first_block_cache import _FBC_BLOCK_HOOK, _FBC_LEADER_BLOCK_HOOK

    for block in blocks:
        registry = vars(block).get("_diffusers_hook")
        for name in (_FBC_LEADER_BLOCK_HOOK, _FBC_BLOCK_HOOK):
            if registry is not None and name in registry.hooks:
                registry.remove_hook(name, recurse=False)
        drop_empty_registry(block)


def effect(work: Work, settings: FirstBlockCacheSettings, telemetry: Telemetry | None) -> Work:
    """Lower the share of all blocks but the first; without telemetry only hold more.

    Telemetry holds the whole stack's residual; its changes, added up since the last computed
    step, stand in for the first block's, which only a run with the cache on shows.
    """
    if telemetry is None:
        return with_residuals(work, 2)

    def cached(phase: Phase) -> Phase:
        changes = telemetry.branches.get(phase.branch or "single")
        if phase.name != "denoise" or changes is None:
            return phase
        share = _share(changes[1], settings.threshold, phase.calls)
        first = _first_block(phase)
        operations = tuple(_reused(op, share, first) for op in phase.operations)
        return phase.model_copy(update={"operations": operations})

    return with_residuals(work.mapped(cached), 2)


def _share(changes: tuple[float, ...], threshold: float, calls: float) -> float:
    # With fewer steps than were recorded, every step is that much wider.
    wider = (len(changes) + 1) / calls if calls else 1.0
    computed, gathered = 1, 0.0
    for change in changes:
        gathered += change * wider
        if gathered > threshold:
            computed, gathered = computed + 1, 0.0
    return computed / (len(changes) + 1)


def _first_block(phase: Phase) -> str:
    """Return the path of the block that runs first, such as transformer_blocks.0."""
    paths = (op.path for op in phase.operations if op.block)
    return ".".join(next(paths, "").split(".")[:2])


def _reused(operation: Operation, share: float, first: str) -> Operation:
    if not operation.block or f"{operation.path}.".startswith(f"{first}."):
        return operation
    return operation.model_copy(update={"share": operation.share * share})


def narrow(case: Case, telemetry: Telemetry | None) -> dict[str, Domain]:
    """Return thresholds from half the smallest change to three computed steps in all."""
    if telemetry is None or not telemetry.branches:
        return {}
    changes = max((pair[1] for pair in telemetry.branches.values()), key=len)
    if not changes or max(changes) <= 0:
        return {}
    low = max(min(changes) / 2, max(changes) / 1000)
    return {"threshold": Domain(low=low, high=max(sum(changes) / 3, 2 * low), log=True)}


def observe(
    settings: FirstBlockCacheSettings, statistics: Statistics, workload: Workload
) -> str | None:
    """Answer a sentence if nothing was reused."""
    return reused_none("first_block_cache", settings.threshold, statistics)


def _cacheable(case: Case) -> str | None:
    if case.model.traits.cacheable:
        return None
    found = ", ".join(case.model.traits.block_classes)
    had = f"{found} are not" if found else f"{case.model.traits.denoiser_class} has none"
    return f"first_block_cache needs blocks that diffusers has registered; {had}"


def _named_branches(case: Case) -> str | None:
    if case.model.traits.branches:
        return None
    return f"first_block_cache needs cache_context; {case.model.pipeline} sets none"


_SOURCE = "diffusers.hooks.first_block_cache"
_FEW = "never triggers at 8 steps: Flow-Factory PR#196; TeaCache#6"

PASS = Pass(
    name="first_block_cache",
    family=Family.CACHING,
    stage=Stage.CACHE,
    fidelity=Fidelity.APPROXIMATE,
    source=_SOURCE,
    settings=FirstBlockCacheSettings,
    owns=("denoiser.step_reuse",),
    needs=(
        Need(_cacheable, _SOURCE),
        Need(_named_branches, "huggingface/diffusers#12760: No cache context is set"),
        Need(nothing_between("first_block_cache"), DISTURBED),
        Need(long_enough("first_block_cache"), _FEW),
        one_denoiser("first_block_cache"),
    ),
    effect=effect,
    apply=apply,
    observe=observe,
    narrow=narrow,
    seeds=({"threshold": 0.08}, {"threshold": 0.15}),
    batch_invariant=False,
)
