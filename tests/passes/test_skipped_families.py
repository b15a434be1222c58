"""Steps that are skipped on a real small denoiser of every family: nothing of it is called."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import tree_map

from planner.hooks.clock import StepClock
from planner.hooks.whole import LATENTS
from planner.run.traits import traits_of
from tests.passes.driving import traces
from tests.passes.whole import Around, on
from tests.test_families import FAMILIES, counted, denoiser

MASK = "110100"


@contextmanager
def modules_called(denoiser: Any) -> Iterator[list[Any]]:
    """Keep every module inside a denoiser that is called."""
    called: list[Any] = []
    inside = set(denoiser.modules()) - {denoiser}
    hook = register_module_forward_pre_hook(
        lambda module, args: called.append(module) if module in inside else None
    )
    yield called
    hook.remove()


# Mochi asks for autocast in float32, which a CPU has not: it says so and computes in float32.
@pytest.mark.filterwarnings("ignore:In CPU autocast")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_skipped_output_calls_no_module_at_all(name: str) -> None:
    module, call = denoiser(name)
    untouched = call()
    with on(module, {"step_mask": {"mask": MASK, "order": 0}}, 6) as under, under.clock.call():
        for one in MASK:
            with modules_called(module) as called:
                output = call()
            assert bool(called) == (one == "1") and torch.equal(output, untouched)
            under.step()
        assert under.statistics["step_mask"]["mask_single"] == MASK
    assert traces(module) == [] and torch.equal(call(), untouched)


@pytest.mark.filterwarnings("ignore:In CPU autocast")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_skipped_stack_runs_no_block_and_gives_the_same(name: str) -> None:
    module, call = denoiser(name)
    untouched = call()
    settings = {"mask": MASK, "order": 1, "tensor": "residual"}
    with on(module, {"step_mask": settings}, 6) as under, under.clock.call():
        for one in MASK:
            with counted(module) as ran:
                output = call()
            assert bool(ran) == (one == "1")
            assert torch.allclose(output, untouched, rtol=1e-3, atol=1e-3)
            under.step()
    assert traces(module) == [] and torch.equal(call(), untouched)


@pytest.mark.parametrize("order", [0, 1])
def test_an_output_that_changes_is_forecast_over_the_noise_level(order: int) -> None:
    module, call = denoiser("QwenImageTransformer2DModel")
    levels = [1 - step / 6 for step in range(6)]
    bias = module.proj_out.bias
    with on(module, {"step_mask": {"mask": MASK, "order": order}}, 6) as under, under.clock.call():
        found = []
        for level in levels:
            bias.fill_(3 * level)  # an output that lies on a line
            found.append(call())
            under.step()
    apart = [float((one - found[0]).mean()) for one in found]
    line = [3 * (level - 1) for level in levels]
    kept = [line[0], line[1], line[1], line[3], line[3], line[3]]
    assert apart == pytest.approx(line if order else kept, abs=1e-4)


@contextmanager
def moving(module: Any, clock: StepClock) -> Iterator[None]:
    """Let the latents that a denoiser is called with shrink from step to step."""

    def shrink(module: Any, args: Any, kwargs: Any) -> Any:
        name = next(one for one in LATENTS if one in kwargs)
        less = tree_map(lambda one: one * (1 - clock.step / 10), kwargs[name])
        return args, kwargs | {name: less}

    hook = module.register_forward_pre_hook(shrink, with_kwargs=True)
    yield
    hook.remove()


@pytest.mark.filterwarnings("ignore:In CPU autocast")
@pytest.mark.parametrize("name", FAMILIES)
def test_easy_cache_stands_in_for_every_denoiser_whose_output_is_as_its_latents(name: str) -> None:
    module, call = denoiser(name)
    extra = traits_of(SimpleNamespace(transformer=module)).extra_channels
    settings = {"threshold": 100.0, "start": 0.0}
    with on(module, {"easy_cache": settings}, 6) as under, moving(module, under.clock):
        with Around(module) as seen, under.clock.call():
            try:
                for _ in range(6):
                    call()
                    under.step()
            except RuntimeError:
                assert extra, "the graph would have let it in"
                return
        assert under.statistics["easy_cache"]["mask_single"] == "110001" and not extra
    added = seen.outputs[1] - seen.latents[1]
    for step in (2, 3, 4):
        assert torch.equal(seen.outputs[step], seen.latents[step] + added)


@pytest.mark.filterwarnings("ignore:In CPU autocast")
@pytest.mark.parametrize("name", FAMILIES)
def test_sea_cache_sees_a_picture_in_what_every_denoiser_is_given(name: str) -> None:
    module, call = denoiser(name)
    settings = {"threshold": 100.0, "start": 0.0, "most": 2}
    with on(module, {"sea_cache": settings}, 6) as under, moving(module, under.clock):
        with under.clock.call():
            for _ in range(6):
                assert torch.isfinite(call()).all()
                under.step()
        assert under.statistics["sea_cache"]["mask_single"] == "100101"
