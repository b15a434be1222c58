"""What a model adds between its blocks is not kept with what the blocks add: nothing comes twice.

Real small denoisers with ControlNet samples, VACE hints, and blocks of two lists by turns; the
stack runs once, and is skipped ever after.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import LatteTransformer3DModel, WanVACETransformer3DModel

from planner.case.work import Phase, Work
from planner.hooks.blocks import Segment, Stack, segments
from planner.hooks.clock import StepClock
from planner.hooks.groups import groups
from planner.hooks.reuse import skipping_steps
from planner.hooks.streams import Form
from planner.plans.graph import build
from planner.prediction.counting import Counting, Scope, Tally, blocks_of, fixed_tensors
from tests.cases import flux_case
from tests.test_families import Again, counted, denoiser, randomly

Call = Callable[..., torch.Tensor]
Made = tuple[Any, Call, dict[str, Any], dict[str, Any]]
"""A denoiser, a call of it, and two sets of what is added between its blocks."""

WAN: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 16, "out_channels": 4, "text_dim": 32,
    "freq_dim": 16, "ffn_dim": 64, "rope_max_seq_len": 32,
}  # fmt: skip
DOUBLE, SINGLE = "controlnet_block_samples", "controlnet_single_block_samples"


def samples(count: int, seed: int) -> list[torch.Tensor]:
    """What a ControlNet gives for `count` blocks of 16 tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 16, 32, generator=generator) for _ in range(count)]


def flux() -> Made:
    now, then = ({DOUBLE: samples(2, seed), SINGLE: samples(2, seed + 1)} for seed in (1, 3))
    return *denoiser("FluxTransformer2DModel"), now, then


def qwen() -> Made:
    now, then = ({DOUBLE: samples(3, seed)} for seed in (1, 3))
    return *denoiser("QwenImageTransformer2DModel"), now, then


def vace() -> Made:
    module = randomly(lambda: WanVACETransformer3DModel(
        **WAN, in_channels=4, num_layers=4, vace_layers=[0, 2], vace_in_channels=12
    ))  # fmt: skip
    video, text = torch.randn(1, 4, 1, 8, 8), torch.randn(1, 8, 32)

    def call(**more: Any) -> torch.Tensor:
        found: torch.Tensor = module(video, torch.ones(1), text, return_dict=False, **more)[0]
        return found

    now, then = ({"control_hidden_states": torch.randn(1, 12, 1, 8, 8)} for _ in range(2))
    return module, call, now, then


def latte() -> Made:
    """Two lists of blocks by turns, and between any two of them the stream is turned."""
    module = randomly(lambda: LatteTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2,
        sample_size=8, patch_size=2, caption_channels=32, cross_attention_dim=32, video_length=3,
        norm_type="ada_norm_single",
    ))  # fmt: skip
    video, text = torch.randn(1, 4, 3, 8, 8), torch.randn(1, 8, 32)

    def call(**more: Any) -> torch.Tensor:
        found: torch.Tensor = module(
            video, torch.ones(1, dtype=torch.long), text, enable_temporal_attentions=True,
            return_dict=False, **more,
        )[0]  # fmt: skip
        return found

    return module, call, {}, {}


MADE = [flux, qwen, vace]
named = pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)


class Watched:
    """Sums up what an untouched forward adds to the image between blocks, up to its last norm."""

    def __init__(self, module: Any) -> None:
        self.added: Any = 0.0
        self.end: Any = None
        self._last: Any = None
        self._hooks = [module.norm_out.register_forward_pre_hook(self._ended)]
        for part in segments(module):
            form = Form(part.blocks[0])
            for block in part.blocks:
                self._hooks += [
                    block.register_forward_pre_hook(partial(self._given, form), with_kwargs=True),
                    block.register_forward_hook(partial(self._ran, form)),
                ]

    def _given(self, form: Form, block: Any, args: Any, kwargs: Any) -> None:
        self._take(form.inputs(args, kwargs)[0])

    def _ran(self, form: Form, block: Any, args: Any, output: Any) -> None:
        self._last = form.unpack(output)[0]

    def _ended(self, norm: Any, args: Any) -> None:
        self._take(args[0])

    def _take(self, image: torch.Tensor) -> None:
        self.end = image
        if self._last is not None:
            self.added = self.added + image - self._last

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()


def watched(module: Any, call: Call, **more: Any) -> Watched:
    found = Watched(module)
    call(**more)
    found.stop()
    return found


@pytest.mark.parametrize("make", [*MADE, latte], ids=lambda make: make.__name__)
def test_a_skipped_forward_of_the_same_input_gives_the_computed_output(make: Any) -> None:
    module, call, now, _ = make()
    untouched = call(**now)
    stack = Stack(module, Again(), StepClock(), "again")
    with counted(module) as ran:
        computed, full = call(**now), len(ran)
        skipped = call(**now)
    stack.detach()
    assert full == len(ran) > 0, "no block ran in the second forward"
    assert torch.equal(computed, untouched)
    assert torch.allclose(skipped, untouched, rtol=1e-5, atol=1e-5)
    assert torch.equal(call(**now), untouched)


class AgainIn(Again):
    """Runs everything in the first forward, and adds the same in some of the groups after it."""

    def __init__(self, kept: frozenset[int]) -> None:
        super().__init__()
        self._kept = kept
        self.told: list[list[bool]] = []

    def reuse(self, branch: str, head: Any, args: Any, kwargs: Any) -> Any:
        if self.added is None:
            return None
        return [one if index in self._kept else None for index, one in enumerate(self.added)]

    def computed(self, branch: str, added: Any) -> None:
        self.told.append([one is not None for one in added])
        self.added = self.added or added


@pytest.mark.parametrize("kept", [{0}, {1}, {0, 1}, {1, 2}, {3}, {0, 3}], ids=str)
@pytest.mark.parametrize("make", [*MADE, latte], ids=lambda make: make.__name__)
def test_any_groups_may_be_skipped_while_the_others_run(make: Any, kept: set[int]) -> None:
    module, call, now, _ = make()
    untouched, parts = call(**now), groups(module)
    kept = {one for one in kept if one < len(parts)}
    rule = AgainIn(frozenset(kept))
    stack = Stack(module, rule, StepClock(), "again", parts)
    with counted(module) as ran:
        computed, full = call(**now), set(ran)
        ran.clear()
        partly = call(**now)
    stack.detach()
    assert torch.equal(computed, untouched)
    assert torch.allclose(partly, untouched, rtol=1e-5, atol=1e-5)
    assert set(ran) == full - blocks_in(module, [parts[one] for one in kept])
    whole, some = [True] * len(parts), [one not in kept for one in range(len(parts))]
    assert rule.told == ([whole, some] if any(some) else [whole])
    assert torch.equal(call(**now), untouched)


@pytest.mark.parametrize("left_out", [[0], [1], [2], [1, 2]], ids=str)
@pytest.mark.parametrize("grouped", [False, True])
def test_a_forward_that_leaves_blocks_out_runs_the_others_and_disturbs_nothing(
    grouped: bool, left_out: list[int]
) -> None:
    """Guidance by skipped layers (SD3.5): a further forward of the same step."""
    module, call = denoiser("SD3Transformer2DModel")
    parts = groups(module) if grouped else segments(module)
    untouched, poorer = call(), call(skip_layers=left_out)
    rule = AgainIn(frozenset(range(len(parts))))
    stack = Stack(module, rule, StepClock(), "again", parts)
    assert torch.equal(call(), untouched)
    kept = [one[0].clone() for one in rule.added]
    if 0 in left_out:  # it is not asked about, since no first block is entered
        assert torch.equal(call(skip_layers=left_out), poorer)
    else:
        rule.added = None
        assert torch.equal(call(skip_layers=left_out), poorer)
        rule.added = None
        assert torch.equal(call(), untouched)
    assert all(torch.equal(one[0], before) for one, before in zip(rule.added, kept, strict=True))
    assert torch.allclose(call(), untouched, rtol=1e-4, atol=1e-5)
    stack.detach()
    assert torch.equal(call(), untouched)


def blocks_in(module: Any, parts: Sequence[Segment]) -> set[str]:
    """The places of the blocks of some groups, as `counted` tells them."""
    places = {block: f"{part.name}.{index}" for part in segments(module)
              for index, block in enumerate(part.blocks)}  # fmt: skip
    return {places[block] for part in parts for block in part.blocks}


@named
def test_a_skipped_forward_adds_what_is_fresh_and_not_what_was_added_then(make: Any) -> None:
    module, call, now, then = make()
    before, after = watched(module, call, **now), watched(module, call, **then)
    stack = Stack(module, Again(), StepClock(), "again")
    call(**now)
    skipped = watched(module, call, **then)
    stack.detach()
    expected = before.end - before.added + after.added
    assert (after.added - before.added).norm() > 0.1 * before.end.norm()
    assert torch.allclose(skipped.end, expected, rtol=1e-4, atol=1e-4)


@named
def test_diffusers_first_block_cache_adds_it_twice(make: Any) -> None:
    from diffusers.hooks.first_block_cache import FirstBlockCacheConfig, apply_first_block_cache
    from diffusers.models.cache_utils import CacheMixin

    module, call, now, _ = make()
    untouched = call(**now)
    apply_first_block_cache(module, FirstBlockCacheConfig(threshold=1e6))
    with CacheMixin.cache_context(module, "again"):
        assert torch.equal(call(**now), untouched)
        skipped = call(**now)
    assert (skipped - untouched).norm() > 0.1 * untouched.norm()


OWN = ("mag_cache", "step_mask", "taylor_seer", "tea_cache")


@pytest.mark.parametrize("word", ["ControlNet", "VACE", "Animate"])
def test_the_graph_refuses_caches_where_they_add_twice_and_no_others(word: str) -> None:
    case = flux_case()
    model = case.model.model_copy(update={"pipeline": f"A{word}Pipeline"})
    excluded = build(case.model_copy(update={"model": model})).excluded
    assert f"undisturbed block stack; {word} adds between blocks" in excluded["first_block_cache"]
    for name in OWN:
        said = excluded.get(name)
        assert (said is None) == (word != "Animate" or name == "step_mask")
        assert said is None or "Animate reads it between blocks" in said


def test_vace_blocks_run_and_are_counted_in_skipped_steps_too() -> None:
    module, call, now, _ = vace()
    tally, counting = Tally(), Counting(Scope(), fixed_tensors(module))
    with ExitStack() as watching, torch.no_grad():
        counting.scope.follow(watching, module, blocks_of(module))
        with counting:
            counting.begin(tally)
            call(**now)
            counting.end()
    phase = Phase(name="denoise", calls=10.0, operations=tally.operations())
    (after,) = skipping_steps(Work(phases=(phase,)), lambda _: 0.25).phases
    shares = {(op.path.split(".")[0], op.share) for op in after.operations}
    assert {("blocks", 0.25), ("vace_blocks", 1.0)} <= shares
    assert ("blocks", 1.0) not in shares and ("vace_blocks", 0.25) not in shares
