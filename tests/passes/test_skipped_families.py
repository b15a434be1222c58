"""Steps that are skipped on a real small denoiser of every family: nothing of it is called."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from tests.passes.driving import traces
from tests.passes.whole import on
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
