"""No cache carries anything from one call into the next, or off the pipeline with it.

Every caching pass of the registry that is legal on the small bench is taken, as it is found there.
"""

import gc
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from planner.passes import registry
from planner.passes.base import Family, Pass
from planner.run.apply import LeavesCaseWarning
from tests.passes.driving import Bench, leftovers, shared_bench, unet_bench
from tests.passes.test_text_kv_cache import wan_bench
from tests.test_conformance import middling, searched

CACHES = tuple(
    name for name in registry.names()
    if registry.get(name).family is Family.CACHING
    and not registry.get(name).missing(shared_bench().case)
)  # fmt: skip
OTHER_CALLS: dict[str, dict[str, Any]] = {
    "more steps, more guidance": {"num_inference_steps": 13, "true_cfg_scale": 6.0},
    "fewer steps, another size": {"num_inference_steps": 7, "height": 96, "width": 48},
    "two images": {"prompt": ["two blue star", "a green square"], "negative_prompt": ["", ""]},
    "no guidance": {"true_cfg_scale": 1.0},
}


def eager(one: Pass) -> dict[str, Any]:
    """Settings in the middle of what is searched here; of choices the last, which keeps most."""
    domains = searched(one, shared_bench()).items()
    last = {name: domain.choices[-1] for name, domain in domains if domain.choices}
    return middling(one, shared_bench()) | last


@pytest.fixture(params=CACHES)
def one(request: pytest.FixtureRequest) -> Pass:
    return registry.get(request.param)


@pytest.fixture
def bench() -> Iterator[Bench]:
    """The bench, left as it was found; calls of another kind are meant here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeavesCaseWarning)
        yield shared_bench()
    assert leftovers(shared_bench().pipe) == []


@pytest.fixture(scope="module")
def drawn() -> dict[str, torch.Tensor]:
    """The reference call's latents under each cache, drawn first of all after it was put on."""
    bench = shared_bench()
    found = {}
    for name in CACHES:
        with bench.put({name: eager(registry.get(name))}) as handle:
            found[name] = bench.draw()
            assert handle.complaints() == {}, "a cache that does nothing carries nothing"
    return found


@pytest.mark.parametrize("change", OTHER_CALLS.values(), ids=OTHER_CALLS)
def test_a_call_is_the_same_before_and_after_one_of_another_kind(
    one: Pass, bench: Bench, drawn: dict[str, torch.Tensor], change: dict[str, Any]
) -> None:
    call = {"prompt": "two blue star", "seed": 1} | change
    with bench.put({one.name: eager(one)}):
        fresh = bench.draw(**call)
        assert torch.equal(bench.draw(), drawn[one.name])
        assert torch.equal(bench.draw(**call), fresh)


@pytest.mark.parametrize("at, call", [(0, {}), (5, {"height": 96, "num_inference_steps": 9})])
def test_a_call_after_one_that_broke_off_is_the_same(
    one: Pass, bench: Bench, drawn: dict[str, torch.Tensor], at: int, call: dict[str, Any]
) -> None:
    def stop(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        if step == at:
            raise InterruptedError("in the middle")
        return {}

    with bench.put({one.name: eager(one)}):
        with pytest.raises(InterruptedError):
            bench.draw("two blue star", callback_on_step_end=stop, **call)
        assert torch.equal(bench.draw(), drawn[one.name])


def test_a_call_after_one_that_broke_off_inside_the_denoiser_is_the_same(
    one: Pass, bench: Bench, drawn: dict[str, torch.Tensor]
) -> None:
    runs = []

    def stop(*_: Any) -> None:
        runs.append(1)
        if len(runs) == 3:  # between a stack's first block and its last, where it runs at all
            raise InterruptedError("between two blocks")

    block = bench.pipe.transformer.transformer_blocks[1]
    with bench.put({one.name: eager(one)}):
        hook = block.register_forward_pre_hook(stop)
        with pytest.raises(InterruptedError):
            bench.draw("two blue star")
        hook.remove()
        assert torch.equal(bench.draw(), drawn[one.name])


def test_a_call_in_which_nothing_was_reused_is_a_complaint(one: Pass, bench: Bench) -> None:
    with bench.put({one.name: eager(one)}) as handle:
        bench.draw(num_inference_steps=1)  # there is nothing before a first step
        if "hit_rate" not in handle.stats[one.name]:
            pytest.skip(f"{one.name} reuses no steps; its own tests say when it is inert")
        assert handle.stats[one.name]["hit_rate"] == 0.0
        assert handle.complaints()[one.name].startswith(f"{one.name} ")


def alive(pipe: Any) -> tuple[int, int]:
    """How many tensors live, and how many attributes the pipeline's modules have."""
    gc.collect()
    tensors = sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())
    parts = (part for part in pipe.components.values() if isinstance(part, torch.nn.Module))
    modules = [module for part in parts for module in part.modules()]
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)
    own = sum(len(vars(module)) for module in modules) + len(vars(pipe))
    return tensors, hooks + own + len(vars(pipe.scheduler))


EVERY = tuple(n for n in registry.names() if registry.get(n).family is Family.CACHING)


@pytest.mark.filterwarnings("ignore::planner.run.apply.LeavesCaseWarning")
@pytest.mark.parametrize("name", EVERY)
def test_a_hundred_times_on_and_off_leak_nothing(name: str) -> None:
    one = registry.get(name)
    if "cache-dit" in str(one.imports) and find_spec("cache_dit") is None:
        pytest.skip("cache-dit is not installed")
    bench = next(made for make in (shared_bench, unet_bench, wan_bench)
                 if not one.missing((made := make()).case))  # fmt: skip
    untouched, values = bench.untouched, eager(one) if name in CACHES else {}
    with bench.put({name: values}):
        bench.draw(num_inference_steps=4)
    before = alive(bench.pipe)
    for index in range(100):
        with bench.put({name: values}):
            if index % 10 == 9:
                bench.draw(num_inference_steps=4)
    assert alive(bench.pipe) == before
    assert torch.equal(bench.draw(), untouched)
