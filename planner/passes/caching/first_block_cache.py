"""Skip the rest of the denoiser where its first block barely changes.

What it does: diffusers' own First Block Cache: the first block always runs; if what it adds
differs from the last computed step's by less than the threshold, the other blocks are skipped and
what they added then is added again. Branches that the pipeline does not name are named here, by
their order within the step.
When it helps: long schedules (28 steps and more) of deep models, where neighbouring steps are
alike; needs no calibration.
What it costs: one scalar read a forward; a branch keeps three tensors as large as its tokens, the
first block's output and residual and what the others added. There is no warm-up, no
cap on skips in a row, and the last step is not protected, so that large thresholds blur.
When not: 8 steps or fewer (never triggers); with ControlNet, VACE or Animate, whose additions
between blocks a skipped step would add twice; with another cache on the same denoiser.
Source: ParaAttention (chengzeyi/ParaAttention) and diffusers.hooks.first_block_cache.
"""

from __future__ import annotations

from typing import Any

from planner.case.case import Case
from planner.case.telemetry import Series, Telemetry
from planner.case.work import Operation, Phase, Work
from planner.case.workload import Workload
from planner.hooks.blocks import denoiser_of, segments
from planner.hooks.branches import Hook, Tally, attach, drop_empty_registry
from planner.hooks.clock import StepClock
from planner.hooks.contexts import named_calls
from planner.hooks.recorder import Forward
from planner.hooks.reuse import (
    DISTURBED,
    computed_share,
    long_enough,
    nothing_between,
    reused_none,
    steps_of,
    with_residuals,
)
from planner.hooks.whole import form_of
from planner.passes.base import (
    Context,
    Domain,
    Family,
    Fidelity,
    Masks,
    Need,
    Pass,
    Settings,
    Stage,
    Statistics,
    Undo,
    knob,
)
from planner.passes.needs import narrowed, one_denoiser

_KEPT = 3
"""What a branch keeps: the first block's output and residual, and what the others added."""


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
        self._seen: dict[str, tuple[int, Any]] = {}

    def restart(self) -> None:
        self._leader.state_manager.reset()
        self._seen.clear()
        self._tally.restart()

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        # A branch that resumes after skipped steps must not reuse what is several steps old, nor
        # what fits other latents; outside a pipeline call nobody says how old anything is.
        step, form = self._clock.step, form_of(args, kwargs)
        last, known = self._seen.get(self.branch, (step, form))
        if not self._clock.running or step > last + 1 or known != form:
            self._leader.state_manager._state_cache.pop(self.branch, None)
        self._seen[self.branch] = (step, form)
        return args, kwargs

    def post_forward(self, module: Any, output: Any) -> Any:
        if self._clock.running:
            state = self._leader.state_manager.get_state()
            self._tally.add(self.branch, computed=bool(state.should_compute))
        return output


def apply(pipeline: Any, settings: FirstBlockCacheSettings, context: Context) -> Undo:
    """Enable diffusers' cache, an observer around its leading hook, and names for every call."""
    from diffusers.hooks.first_block_cache import _FBC_LEADER_BLOCK_HOOK

    denoiser = denoiser_of(pipeline)
    blocks = [block for part in segments(denoiser) for block in part.blocks]
    take_off = _put_on(denoiser, blocks, settings.threshold)
    leader = blocks[0]._diffusers_hook.get_hook(_FBC_LEADER_BLOCK_HOOK)
    observer = _Observer(leader, Tally(context.statistics, context.clock), context.clock)
    undo = [
        take_off,
        attach(denoiser, blocks[0], observer, "planner_first_block_cache"),
        named_calls(denoiser, context.clock, "planner_first_block_cache"),
        context.clock.on_reset(observer.restart),
    ]

    def undo_all() -> None:
        while undo:
            undo.pop()()

    return undo_all


def _put_on(denoiser: Any, blocks: list[Any], threshold: float) -> Undo:
    """Put the library's hooks on, also where the denoiser has no `enable_cache`."""
    from diffusers import FirstBlockCacheConfig
    from diffusers.hooks import apply_first_block_cache

    config, theirs = FirstBlockCacheConfig(threshold=threshold), _hooks(blocks)
    mixed = hasattr(denoiser, "enable_cache")
    try:
        if mixed:
            denoiser.enable_cache(config)
        else:
            apply_first_block_cache(denoiser, config)
    except BaseException:
        if not theirs:  # the library may have put its hooks on some blocks already
            _clear(blocks)
        raise

    def take_off() -> None:
        if mixed:
            denoiser.disable_cache()
        _clear(blocks)

    return take_off


def _hooks(blocks: list[Any]) -> list[tuple[Any, str]]:
    """Return the library's hooks on blocks, each as its registry and its name there."""
    from diffusers.hooks.first_block_cache import _FBC_BLOCK_HOOK, _FBC_LEADER_BLOCK_HOOK

    registries = [vars(block).get("_diffusers_hook") for block in blocks]
    return [(one, name) for one in registries if one is not None
            for name in (_FBC_LEADER_BLOCK_HOOK, _FBC_BLOCK_HOOK) if name in one.hooks]  # fmt: skip


def _clear(blocks: list[Any]) -> None:
    """Take the library's hooks off blocks, and what its registries leave behind."""
    for registry, name in _hooks(blocks):
        registry.remove_hook(name, recurse=False)
    for block in blocks:
        drop_empty_registry(block)


def probe(forward: Forward) -> Any:
    """Return what the first block added to the image tokens."""
    return forward.first


def masks(settings: FirstBlockCacheSettings, telemetry: Telemetry) -> Masks:
    """Return the steps at which the rest of the stack would run in the recorded calls."""
    return [{branch: _mask(series, settings.threshold) for branch, series in seen.items()}
            for seen in telemetry.series("first_block_cache")]  # fmt: skip


def _mask(series: Series, threshold: float) -> str:
    mask, last = "1", 0
    for step in range(1, len(series.sizes)):
        if series.change(step, last) > threshold:
            mask, last = mask + "1", step
        else:
            mask += "0"
    return mask


def effect(work: Work, settings: FirstBlockCacheSettings, telemetry: Telemetry | None) -> Work:
    """Lower the share of all blocks but the first; without telemetry only hold more."""
    if telemetry is None:
        return with_residuals(work, 0, _KEPT)
    share_of = computed_share(masks(settings, telemetry.at(steps_of(work))))

    def cached(phase: Phase) -> Phase:
        share = share_of(phase) if phase.name == "denoise" else None
        if share is None:
            return phase
        first = _first_block(phase)
        operations = tuple(_reused(op, share, first) for op in phase.operations)
        return phase.model_copy(update={"operations": operations})

    return with_residuals(work.mapped(cached), 0, _KEPT)


def _first_block(phase: Phase) -> str:
    """Return the path of the block that runs first, such as transformer_blocks.0."""
    paths = (op.path for op in phase.operations if op.block)
    return ".".join(next(paths, "").split(".")[:2])


def _reused(operation: Operation, share: float, first: str) -> Operation:
    if not operation.block or f"{operation.path}.".startswith(f"{first}."):
        return operation
    return operation.model_copy(update={"share": operation.share * share})


def narrow(case: Case, telemetry: Telemetry | None) -> dict[str, Domain]:
    """Return the thresholds at which something changes in the recorded calls."""
    if telemetry is None:
        return {}
    return narrowed("threshold", telemetry.at(case.workload.steps), lambda value, seen: masks(
        FirstBlockCacheSettings(threshold=value), seen))  # fmt: skip


def observe(
    settings: FirstBlockCacheSettings, statistics: Statistics, workload: Workload
) -> str | None:
    """Answer a sentence if nothing was reused."""
    return reused_none("first_block_cache", settings.threshold, statistics)


def _cacheable(case: Case) -> str | None:
    traits = case.model.traits
    if traits.cacheable:
        return None
    found = ", ".join(traits.block_classes)
    if traits.skippable:
        return ("first_block_cache needs blocks that take hidden_states and all return the same "
                f"streams; {found} do not")  # fmt: skip
    had = f"{found} are not" if found else f"{traits.denoiser_class} has none"
    return f"first_block_cache needs blocks that diffusers has registered; {had}"


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
        Need(nothing_between("first_block_cache"), DISTURBED),
        Need(long_enough("first_block_cache"), _FEW),
        one_denoiser("first_block_cache"),
    ),
    effect=effect,
    probe=probe,
    masks=masks,
    apply=apply,
    observe=observe,
    narrow=narrow,
    seeds=({"threshold": 0.08}, {"threshold": 0.15}),
    batch_invariant=False,
)
