"""cache-dit's cached blocks in place of a denoiser's own, while a forward runs.

cache-dit makes one module of a block list, which decides for the whole list. Its `enable_cache`
patches the pipeline's class and tells branches apart by counting forwards; here the modules stand
in for the lists during a forward alone, each with the context (cache-dit's word for its state) of
the branch that the pipeline names.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, NamedTuple

from planner.case.noun import Scalar
from planner.errors import UsageError
from planner.hooks.block_ends import ends
from planner.hooks.blocks import denoisers_of, segments
from planner.hooks.branches import Hook, Order, PerBranch, Tally, attach
from planner.hooks.clock import StepClock
from planner.hooks.reuse import FEW_STEPS
from planner.hooks.whole import form_of

NAME = "planner_dual_blocks"

DENOISERS = (
    "CogVideoXTransformer3DModel", "Flux2Transformer2DModel", "FluxTransformer2DModel",
    "HunyuanVideo15Transformer3DModel", "HunyuanVideoTransformer3DModel",
    "LTXVideoTransformer3DModel", "MochiTransformer3DModel", "PixArtTransformer2DModel",
    "QwenImageTransformer2DModel", "SD3Transformer2DModel", "SanaTransformer2DModel",
    "WanTransformer3DModel", "ZImageTransformer2DModel",
)  # fmt: skip
"""Classes that give every block of a list the same arguments, so that one module can stand in."""


class Listed(NamedTuple):
    """Blocks that cache-dit takes as one list, and how they take and return their streams.

    `joined` names the lists whose blocks stand in this one too.
    """

    name: str
    blocks: Any
    pattern: Any
    joined: tuple[str, ...] = ()

    @property
    def returns_text(self) -> bool:
        """Tell whether the list returns its text tokens: some models' last block drops them."""
        dropped = getattr(self.blocks[-1], "context_pre_only", False)
        return not (self.pattern.Return_H_Only or dropped)

    def ends(self, first: int, last: int) -> tuple[int, int]:
        """Return how many blocks run at both ends, where so many are asked for."""
        return ends(first, last, len(self.blocks))


Make = Callable[[Listed], Any]
"""Makes a fresh `CachedContext` for a list, at the step where the clock is."""


def listed(denoiser: Any) -> tuple[Listed, ...]:
    """Return a denoiser's lists as cache-dit knows its class, else as diffusers its blocks.

    cache-dit would rewrite some forwards before it caches them; it is asked for the lists alone.
    """
    from cache_dit.caching import BlockAdapter, BlockAdapterRegister

    adapter = BlockAdapterRegister.get_adapter(denoiser, skip_post_init=True)
    if adapter is None:
        return tuple(Listed(part.name, getattr(denoiser, part.name), _pattern(part.blocks[0]))
                     for part in segments(denoiser))  # fmt: skip
    adapter = BlockAdapter.normalize(adapter, unique=False)
    own = {id(child): name for name, child in denoiser.named_children()}
    names = adapter.blocks_name or [[own[id(blocks)] for blocks in adapter.blocks[0]]]
    joined = tuple(adapter.dummy_blocks_names[0])
    found = zip(names[0], adapter.blocks[0], adapter.forward_pattern[0], strict=True)
    return tuple(Listed(name, blocks, pattern, joined) for name, blocks, pattern in found)


def _pattern(block: Any) -> Any:
    """Return cache-dit's name for how a block that diffusers has registered is called."""
    from cache_dit.caching import ForwardPattern
    from diffusers.hooks._helpers import TransformerBlockRegistry

    known = TransformerBlockRegistry.get(type(block))
    if known.return_encoder_hidden_states_index is None:
        return ForwardPattern.Pattern_3
    image_first = known.return_hidden_states_index == 0
    return ForwardPattern.Pattern_0 if image_first else ForwardPattern.Pattern_1


@cache
def masked(name: str, steps: int) -> str:
    """Return cache-dit's mask for a schedule: 1 computed, 0 not; it has none below four steps."""
    from cache_dit.caching import steps_mask

    if steps < FEW_STEPS and steps not in (4, 6):
        return "1" * steps
    return "".join(map(str, steps_mask(mask_policy=name, total_steps=steps)))


def dual_blocks(
    pipeline: Any, make: Make, clock: StepClock, statistics: dict[str, Scalar]
) -> Callable[[], None]:
    """Put cache-dit's blocks on every denoiser of a pipeline; returns the undo.

    `statistics` receive what `Tally` counts: a forward is reused if its last list was, as in
    `cache_dit.summary`. Raises `UsageError` for a denoiser that has a cache already.
    """
    for denoiser in denoisers_of(pipeline).values():
        _refuse_cached(denoiser)
    frame = _Frame(make, clock, Tally(statistics, clock))
    with ExitStack() as stack:
        stack.callback(clock.on_reset(frame.restart))
        for denoiser in denoisers_of(pipeline).values():
            stack.callback(attach(denoiser, denoiser, _StandIn(denoiser, frame), NAME))
        return stack.pop_all().close


def _refuse_cached(denoiser: Any) -> None:
    """Refuse a denoiser with diffusers' cache, or cache-dit's: on top of it nothing would warn."""
    for owner, mark in (("diffusers", "is_cache_enabled"), ("cache-dit", "_is_cached")):
        if getattr(denoiser, mark, False):
            name = type(denoiser).__name__
            raise UsageError(f"{name} carries a cache of {owner} already", value=name,
                             way_out="disable that cache first")  # fmt: skip


class _Frame:
    """What the denoisers of one call share: contexts by branch, branches by order, the counts."""

    def __init__(self, make: Make, clock: StepClock, tally: Tally) -> None:
        self.clock, self.tally, self.order = clock, tally, Order(clock)
        self._make = make
        self._lists: tuple[Listed, ...] = ()
        self._branches = PerBranch(self._fresh, clock)

    def restart(self) -> None:
        """Forget the last call."""
        self._branches.clear()
        self.order.restart()
        self.tally.restart()

    def contexts(self, lists: tuple[Listed, ...], branch: str, form: Any) -> dict[str, Any]:
        """Return a branch's context for each list; another expert starts with fresh ones.

        So do latents of another form: cache-dit would add what it keeps to them.
        """
        if lists is not self._lists:
            self._branches.clear()
            self._lists = lists
        return self._branches.of(branch, form)

    def _fresh(self) -> dict[str, Any]:
        return {one.name: self._make(one) for one in self._lists}


class _StandIn(Hook):
    """Lets a denoiser's forward find cache-dit's blocks where its lists were.

    Whose contexts they use is settled when the first list runs: a hook beneath may answer for the
    denoiser, which is then no forward of that branch.
    """

    def __init__(self, denoiser: Any, frame: _Frame) -> None:
        from torch.nn import ModuleList

        super().__init__()
        self._frame = frame
        self._lists = listed(denoiser)
        self._manager = _manager(self._context)
        self._branch, self._contexts, self._form = "", dict[str, Any](), ()
        self._stand_ins = {
            one.name: ModuleList([_cached(denoiser, one, self._manager)]) for one in self._lists
        } | {name: ModuleList() for one in self._lists for name in one.joined}

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a forward with the stand-ins, where it is known in which call and step it is."""
        if not self._frame.clock.running:  # nobody says where a call begins: nothing may be reused
            return self.fn_ref.original_forward(*args, **kwargs)
        self._form = form_of(args, kwargs)
        with self._standing_in(module):
            output = self.fn_ref.original_forward(*args, **kwargs)
            if self._contexts:
                last = self._contexts[self._lists[-1].name]
                reused = last.cached_steps[-1:] == [last.get_current_step()]
                self._frame.tally.add(self._branch, computed=not reused)
        return output

    def _context(self, name: str) -> Any:
        """Return the context of a list that runs now."""
        if not self._contexts:
            self._branch = self._frame.order.branch(self)
            self._contexts = self._frame.contexts(self._lists, self._branch, self._form)
        return self._contexts[name]

    @contextmanager
    def _standing_in(self, module: Any) -> Iterator[None]:
        own = {name: getattr(module, name) for name in self._stand_ins}
        try:
            for name, stand_in in self._stand_ins.items():
                setattr(module, name, stand_in)
            yield
        finally:
            for name, blocks in own.items():
                setattr(module, name, blocks)
            self._contexts = {}
            self._manager.leave()


def _manager(context_of: Callable[[str], Any]) -> Any:
    """Return a manager that asks whose context a list runs with whenever one runs."""
    from cache_dit.caching import CachedContextManager

    class Manager(CachedContextManager):  # type: ignore[misc]
        def set_context(self, cached_context: str) -> Any:
            return super().set_context(context_of(cached_context))

        def leave(self) -> None:
            self._current_context = None  # else it keeps what a finished call has cached

    return Manager(name=NAME, persistent_context=True)


def _cached(denoiser: Any, one: Listed, manager: Any) -> Any:
    """Return cache-dit's module for a list.

    Its patterns are known here, so that it need not compare names of arguments.
    """
    from cache_dit.caching import CachedBlocks

    with _silent():
        return CachedBlocks(
            one.blocks, transformer=denoiser, forward_pattern=one.pattern,
            check_forward_pattern=False, check_num_outputs=False, cache_prefix=one.name,
            cache_context=one.name, context_manager=manager,
        )  # fmt: skip


@contextmanager
def _silent() -> Iterator[None]:
    """Keep cache-dit from saying what it matched: on standard output, where `--json` writes."""
    log = logging.getLogger("cache_dit.caching.cache_blocks.pattern_base")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
