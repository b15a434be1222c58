"""Every pass of the registry keeps its contract; a pass file dropped in is covered as it is.

A pass is tested on the first bench whose case fulfils its needs: a small call, a larger batch, a
U-Net, and last the small one declared to be on a GPU. What that one says is judged without running,
save for passes whose hooks do on a CPU what they do on a GPU (`ALSO_ON_CPU`).
"""

import json
import math
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from planner.case.model import Traits
from planner.case.work import Work
from planner.errors import UsageError
from planner.hooks.blocks import denoiser_of
from planner.passes import registry
from planner.passes.base import Domain, Family, Fidelity, Pass, domains, nothing
from planner.plans.graph import build
from planner.plans.plan import Plan
from planner.run.apply import LeavesCaseWarning
from tests.passes.driving import (
    Bench,
    Executed,
    declared_bench,
    large_bench,
    leftovers,
    newest_bench,
    shared_bench,
    stacks,
    unet_bench,
)

NAMES = tuple(registry.names())
HEADINGS = ("What it does", "When it helps", "What it costs", "When not", "Source")
SENTENCE = re.compile(r"^\S.* .*[^.]$")


ALSO_ON_CPU = (
    "fp8_storage", "group_offload", "int8_weight", "model_offload", "text_encoder_offload",
)  # fmt: skip
"""Passes that help on a GPU only, but whose hooks run on any device."""


@pytest.fixture(params=NAMES)
def one(request: pytest.FixtureRequest) -> Pass:
    return registry.get(request.param)


@pytest.fixture
def bench(one: Pass) -> Bench:
    """The first bench whose case fulfils the pass's needs."""
    benches = (shared_bench, large_bench, unet_bench, declared_bench, newest_bench)
    found = next((make() for make in benches if one.missing(make().case) == ()), None)
    assert found is not None, f"no bench fulfils {one.name}: {one.missing(declared_bench().case)}"
    return found


@pytest.fixture
def clean(one: Pass, bench: Bench) -> Iterator[Bench]:
    """The bench, to run on, which must be as untouched after the test as before it."""
    if bench.case.device.kind != bench.pipe.device.type and one.name not in ALSO_ON_CPU:
        pytest.skip(one.missing(shared_bench().case)[0])
    yield bench
    assert leftovers(bench.pipe) == []


def searched(one: Pass, bench: Bench) -> dict[str, Domain]:
    """The domains that a search on this case would use."""
    narrowed = one.narrow(bench.case, bench.telemetry) if one.narrow else {}
    return domains(one.settings) | narrowed


def middling(one: Pass, bench: Bench) -> dict[str, Any]:
    """Settings in the middle of what a search would try here: choices at their first."""
    return {name: middle(domain) for name, domain in searched(one, bench).items()}


def middle(domain: Domain) -> Any:
    if domain.choices is not None:
        return domain.choices[0]
    assert domain.low is not None and domain.high is not None
    if domain.log:
        return math.sqrt(domain.low * domain.high)
    value = (domain.low + domain.high) / 2
    return round(value) if domain.integer else value


def test_the_documentation_has_the_fixed_headings_in_order(one: Pass) -> None:
    found = [one.doc.find(f"\n{heading}: ") for heading in HEADINGS]
    assert -1 not in found and found == sorted(found)
    assert one.source and one.doc.splitlines()[0].endswith(".")


def test_every_setting_says_what_it_means_and_has_a_sane_domain(one: Pass) -> None:
    defaults = one.settings()
    for name, info in one.settings.model_fields.items():
        assert info.description and len(info.description) > 10
        domain = domains(one.settings).get(name)
        if domain is not None:
            assert_inside(getattr(defaults, name), domain, f"default of {name}")


def assert_inside(value: Any, domain: Domain, what: str) -> None:
    if domain.choices is not None:
        assert value in domain.choices and len(set(domain.choices)) > 1, what
        return
    assert domain.low is not None and domain.high is not None
    assert domain.low < domain.high, what
    assert domain.low <= value <= domain.high, what
    assert not (domain.log and domain.low <= 0), what


def test_seeds_are_legal_settings_inside_the_declared_domains(one: Pass) -> None:
    assert one.seeds
    for seed in one.seeds:
        registry.settings_of(one.name, dict(seed))
        for name, domain in domains(one.settings).items():
            if name in seed:
                assert_inside(seed[name], domain, f"seed {name}")


def test_the_domains_for_this_case_are_legal_settings_at_both_ends(one: Pass, bench: Bench) -> None:
    for name, domain in searched(one, bench).items():
        ends = domain.choices or (domain.low, domain.high)
        for end in ends:
            registry.settings_of(one.name, {name: int(end) if domain.integer else end})


def test_unknown_settings_are_refused_by_name(one: Pass) -> None:
    with pytest.raises(UsageError, match="no setting 'treshold_of_nothing'"):
        Plan.of({one.name: {"treshold_of_nothing": 1}})


def test_needs_answer_nothing_or_a_sentence_that_names_the_pass(one: Pass, bench: Bench) -> None:
    bare = bench.case.model_copy(update={
        "workload": bench.case.workload.model_copy(update={
            "guidance": "batched", "dtype": "float16", "call": {"num_inference_steps": 4},
        }),
        "model": bench.case.model.model_copy(update={
            "components": {}, "adapters": ("a style",),
            "traits": Traits(denoiser="transformer", denoiser_class="Strange",
                             block_classes=("Strange",)),
        }),
        "device": shared_bench().case.device.model_copy(update={"features": ()}),
    })  # fmt: skip
    assert all(need.source for need in one.needs)
    for sentence in (*one.missing(bare), *one.missing(shared_bench().case)):
        assert SENTENCE.match(sentence) and sentence.startswith(f"{one.name} needs ")
    assert one.missing(bench.case) == ()
    assert one.needs == () or one.missing(bare)


def test_avoids_name_existing_passes_and_give_reason_and_source(one: Pass) -> None:
    for avoid in one.avoids:
        assert avoid.other in NAMES and avoid.because and avoid.source


def test_what_cannot_be_had_here_is_a_sentence_and_what_is_searched_can(
    one: Pass, bench: Bench
) -> None:
    if one.unfit is None:
        return
    for name, domain in searched(one, bench).items():
        for value in domain.choices or ():
            said = one.unfit(bench.case, registry.settings_of(one.name, {name: value}))
            assert said is None or (SENTENCE.match(said) and said.startswith(one.name))
    assert one.unfit(bench.case, registry.settings_of(one.name, middling(one, bench))) is None


def computed(work: Work, one: Pass) -> float:
    """FLOPs of the phases that a pass may not add to: tiles decode their overlaps twice."""
    free = ("decode",) if one.family is Family.MEMORY else ()
    return sum(phase.flops for phase in work.phases if phase.name not in free)


def test_the_effect_is_a_pure_function_that_adds_no_work(one: Pass, bench: Bench) -> None:
    settings = registry.settings_of(one.name, middling(one, bench))
    before = bench.work.model_dump_json()
    for telemetry in (None, bench.telemetry):
        after = one.effect(bench.work, settings, telemetry)
        assert after == one.effect(bench.work, settings, telemetry)
        assert computed(after, one) <= computed(bench.work, one) * (1 + 1e-9)
        assert [p.name for p in after.phases] == [p.name for p in bench.work.phases]
    assert bench.work.model_dump_json() == before


def encodings(work: Work) -> float:
    return sum(phase.calls for phase in work.phases if phase.name == "encode")


def test_the_effect_agrees_with_what_apply_really_computes(one: Pass, clean: Bench) -> None:
    values = middling(one, clean)
    settings = registry.settings_of(one.name, values)
    with clean.put({one.name: values}):
        clean.draw("two blue star", seed=1)
        with Executed(clean.pipe) as executed:
            clean.draw()
    blind = one.effect(clean.work, settings, None)
    seen = one.effect(clean.work, settings, clean.telemetry)
    assert executed.encodings == encodings(seen)
    # Without telemetry a cache promises nothing; with it, about a step and branch in ten.
    assert executed.forwards <= blind.forwards
    assert executed.stacks <= stacks(blind, clean.pipe)
    assert abs(executed.forwards - seen.forwards) <= (2 if one.masks else 0)
    assert abs(executed.stacks - stacks(seen, clean.pipe)) <= 2


def test_off_again_the_output_is_bit_equal_also_the_second_time(one: Pass, clean: Bench) -> None:
    untouched = clean.untouched
    values = middling(one, clean)
    drawn = []
    for _ in range(2):
        with clean.put({one.name: values}):
            drawn.append(clean.draw())
        assert leftovers(clean.pipe) == []
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(clean.draw(), untouched)
    if one.fidelity is Fidelity.EXACT:
        assert torch.allclose(drawn[0], untouched, rtol=1e-4, atol=1e-5)
    elif one.apply is not nothing:
        assert not torch.equal(drawn[0], untouched)


def test_an_exception_in_the_middle_of_a_run_leaves_no_state_behind(
    one: Pass, clean: Bench
) -> None:
    def stop(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        if step == 2:
            raise InterruptedError("in the middle")
        return {}

    untouched = clean.untouched
    with clean.put({one.name: middling(one, clean)}):
        with pytest.raises(InterruptedError):
            clean.draw("two blue star", callback_on_step_end=stop)
        after_failure = clean.draw()
        assert torch.equal(after_failure, clean.draw())
    assert torch.equal(clean.draw(), untouched)


def test_statistics_are_json_scalars_and_observe_is_content(one: Pass, clean: Bench) -> None:
    with clean.put({one.name: middling(one, clean)}) as handle:
        clean.draw()
        statistics = handle.stats[one.name]
        assert handle.complaints() == {}
    assert json.loads(json.dumps(statistics, allow_nan=False)) == statistics
    assert all(isinstance(v, str | int | float | bool | None) for v in statistics.values())


def test_an_image_depends_on_its_neighbours_only_where_the_pass_says_so(
    one: Pass, clean: Bench
) -> None:
    def first(neighbour: str, seed: int) -> torch.Tensor:
        with clean.put({one.name: middling(one, clean)}):
            generators = [torch.Generator().manual_seed(s) for s in (0, seed)]
            prompts: Any = ["a red circle", neighbour]
            return clean.draw(prompts, generator=generators, negative_prompt=["", ""])[0]

    with warnings.catch_warnings():  # the plan was measured for one image a call
        warnings.simplefilter("ignore", LeavesCaseWarning)
        beside, other = first("two blue star", 1), first("green square on a circle", 7)
    if one.batch_invariant:
        assert torch.allclose(beside, other, rtol=1e-4, atol=1e-5)


def test_the_graph_answers_for_the_pass_alone(one: Pass, bench: Bench) -> None:
    graph = build(bench.case)
    assert graph.why_not(Plan.of({one.name: middling(one, bench)})) is None
    broken = bench.case.model_copy(update={
        "model": bench.case.model.model_copy(update={
            "components": {}, "traits": Traits(denoiser="unet", denoiser_class="Strange"),
        }),
        "workload": bench.case.workload.model_copy(update={"guidance": "none"}),
    })  # fmt: skip
    why = build(broken).why_not(Plan.of({one.name: middling(one, bench)}))
    assert SENTENCE.match(str(why)) if one.missing(broken) else why is None


def test_twenty_times_on_and_off_leave_nothing_and_grow_nothing(one: Pass, clean: Bench) -> None:
    def size() -> int:
        return sum(len(vars(module)) for module in denoiser_of(clean.pipe).modules())

    values = middling(one, clean)
    clean.put({one.name: values}).remove()
    before = size()
    for _ in range(20):
        clean.put({one.name: values}).remove()
    assert leftovers(clean.pipe) == [] and size() == before
    modules = list(denoiser_of(clean.pipe).modules())
    assert len(modules) == len(set(modules))
