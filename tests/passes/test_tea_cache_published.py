"""TeaCache with polynomials that others published: for their checkpoint alone, by their size."""

from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from planner.case.case import Case
from planner.catalog.teacache import tables
from planner.errors import TrialFailed
from planner.hooks.clock import StepClock
from planner.hooks.curve import magnitude
from planner.hooks.modulation import modulated_input
from planner.passes import registry
from planner.passes.base import Context
from planner.plans.plan import Plan
from planner.run.apply import Handle, put_on
from tests.passes.driving import Bench
from tests.test_families import FAMILIES, denoiser

PASS = registry.get("tea_cache")
FLUX = next(one.coefficients for one in tables() if one.model == "flux.1-dev")
PUBLISHED = {"threshold": 0.4, "start": 0.0, "coefficients": "published"}
IDENTITY = [0.0, 0.0, 0.0, 1.0, 0.0]


def named(case: Case, name: str, **others: Any) -> Case:
    """Return the case as if its weights were those of another model."""
    return case.model_copy(update={"model": case.model.model_copy(update={"id": name} | others)})


def put(bench: Bench, settings: dict[str, Any], **others: Any) -> Handle:
    case = named(bench.case, "black-forest-labs/FLUX.1-dev")
    return put_on(bench.pipe, Plan.of({"tea_cache": settings}), case, **others)


def drawn(bench: Bench) -> list[list[torch.Tensor]]:
    """Draw one image; return what each branch's first block saw, step by step."""
    head = bench.pipe.transformer.transformer_blocks[0]
    seen: list[torch.Tensor] = []

    def take(block: Any, args: Any, kwargs: Any) -> None:
        seen.append(modulated_input(block, args, kwargs))

    hook = head.register_forward_pre_hook(take, with_kwargs=True)
    bench.draw()
    hook.remove()
    return [seen[0::2], seen[1::2]]


def expected(seen: list[torch.Tensor], coefficients: Sequence[float], threshold: float) -> str:
    """Return the mask of the paper's rule, worked out beside the pass."""
    mask, gathered = "1", 0.0
    for before, now in pairwise(seen):
        change = float((now - before).abs().mean() / before.abs().mean())
        gathered += abs(float(np.polyval(coefficients, change)))
        runs = gathered >= threshold or len(mask) == len(seen) - 1
        gathered = 0.0 if runs else gathered
        mask += "1" if runs else "0"
    return mask


def test_the_published_polynomial_decides_without_a_calibration(bench: Bench) -> None:
    with put(bench, PUBLISHED) as handle:
        branches = drawn(bench)
        stats = handle.stats["tea_cache"]
    masks = [expected(seen, FLUX, 0.4) for seen in branches]
    assert [stats["mask_cond"], stats["mask_uncond"]] == masks and "0" in masks[0]


def test_a_policy_keeps_to_the_numbers_that_it_was_measured_with(bench: Bench) -> None:
    with put(bench, PUBLISHED, artifacts={"tea_cache": {"published": IDENTITY}}) as handle:
        branches = drawn(bench)
        stats = handle.stats["tea_cache"]
    masks = [expected(seen, IDENTITY, 0.4) for seen in branches]
    assert [stats["mask_cond"], stats["mask_uncond"]] == masks
    assert masks != [expected(seen, FLUX, 0.4) for seen in branches]


def test_taking_the_published_numbers_renders_nothing(bench: Bench) -> None:
    assert PASS.calibrate is not None
    case = named(bench.case, "flux.1-dev")
    settings = registry.settings_of("tea_cache", PUBLISHED)
    learned = PASS.calibrate(None, settings, Context(case, StepClock()), None)
    assert learned == {"published": list(FLUX)}


@pytest.mark.parametrize(
    ("name", "others", "said"),
    [
        ("somebody/FLUX.1-style", {}, "none are published for somebody/FLUX.1-style"),
        ("flux.1-dev", {"adapters": ("transformer:style",)}, "flux.1-dev with transformer:style"),
        ("black-forest-labs/FLUX.2-dev", {}, "none are published for black-forest-labs/FLUX.2-dev"),
    ],
)
def test_another_checkpoint_is_refused_with_a_way_out(
    name: str, others: dict[str, Any], said: str, bench: Bench
) -> None:
    assert PASS.unfit is not None
    case = named(bench.case, name, **others)
    settings = registry.settings_of("tea_cache", PUBLISHED)
    sentence = PASS.unfit(case, settings)
    assert sentence is not None and said in sentence
    assert sentence.startswith("tea_cache needs coefficients of this very checkpoint; ")
    assert sentence.endswith(": fit them, with coefficients set to fitted")
    assert PASS.unfit(case, registry.settings_of("tea_cache", {})) is None
    with pytest.raises(TrialFailed, match="of this very checkpoint") as caught:
        put_on(bench.pipe, Plan.of({"tea_cache": PUBLISHED}), case)
    assert caught.value.value == name and caught.value.way_out.startswith("fit them")


def test_coefficients_of_another_indicator_are_refused(bench: Bench) -> None:
    assert PASS.unfit is not None
    traits = bench.case.model.traits.model_copy(update={"denoiser_class": "WanTransformer3DModel"})
    case = named(bench.case, "wan2.1-t2v-14b", traits=traits)
    said = PASS.unfit(case, registry.settings_of("tea_cache", PUBLISHED))
    assert said is not None and "wan2.1-t2v-14b are of the timestep embedding" in said


def test_a_fitted_plan_does_not_take_published_numbers_for_its_own(bench: Bench) -> None:
    with pytest.raises(TrialFailed, match="tea_cache has no artifact"):
        put_on(bench.pipe, Plan.of({"tea_cache": {}}), named(bench.case, "flux.1-dev"),
               {"tea_cache": {"published": list(FLUX)}})  # fmt: skip


def test_of_published_coefficients_nothing_is_foretold(bench: Bench) -> None:
    settings = registry.settings_of("tea_cache", PUBLISHED)
    found = PASS.effect(bench.work, settings, bench.telemetry)
    assert found == PASS.effect(bench.work, settings, None) and found.flops == bench.work.flops


def test_a_polynomial_is_added_by_its_size() -> None:
    plain = magnitude(IDENTITY)
    assert [plain(x) for x in (0.0, 0.1, 2.0)] == [0.0, 0.1, 2.0]
    for one in tables():
        of = magnitude(one.coefficients)
        for x in np.linspace(0.0, 1.0, 41):
            raw = float(np.polyval(one.coefficients, x))
            assert of(float(x)) == pytest.approx(abs(raw), rel=1e-6, abs=1e-9) and of(float(x)) >= 0
    kontext = next(one.coefficients for one in tables() if one.model == "flux.1-kontext-dev")
    assert np.polyval(kontext, 0.5) < -10  # raw, a change of half would undo all that was gathered
    assert magnitude(kontext)(0.5) > 10


# Mochi asks for autocast in float32, which a CPU has not: it says so and computes in float32.
@pytest.mark.filterwarnings("ignore:In CPU autocast")
@pytest.mark.parametrize("name", FAMILIES)
def test_the_rule_reuses_steps_of_a_denoiser_of_every_family(name: str, bench: Bench) -> None:
    module, call = denoiser(name)
    untouched = call()
    clock, scheduler = StepClock(), SimpleNamespace(step=lambda: None, timesteps=[3, 2, 1, 0])
    context = Context(bench.case, clock, artifact={"published": IDENTITY})
    settings = registry.settings_of("tea_cache", PUBLISHED)
    detach = clock.attach(scheduler)
    undo = PASS.apply(SimpleNamespace(transformer=module), settings, context)
    with clock.call():
        for _ in range(4):  # the same input at every step: nothing changes, nothing gathers
            assert torch.allclose(call(), untouched, rtol=1e-3, atol=1e-4)
            scheduler.step()
    undo()
    detach()
    assert context.statistics["mask_single"] == "1001"
    assert torch.equal(call(), untouched)
