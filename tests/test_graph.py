"""What is legal together, in which order, and the sentence for what is not."""

import re
from pathlib import Path
from typing import Any

import pytest

from planner.case.goal import Goal
from planner.errors import UsageError
from planner.passes import registry
from planner.passes.base import Avoid, Family, Need, Stage
from planner.plans.graph import Graph, build
from planner.plans.plan import BASELINE, Plan, PlannedPass
from planner.plans.seeds import MOST, seeds
from tests.cases import TRAITS, a_pass, flux_case

GOAL = Goal(budget_seconds=2.0, max_lpips=0.1)


def plan_of(**passes: dict[str, Any]) -> Plan:
    """Return a plan of passes made by hand, in the given order."""
    entries = (PlannedPass(name=name, settings=values) for name, values in passes.items())
    return Plan(passes=tuple(entries))


@pytest.fixture(scope="module")
def real() -> Graph:
    """Return the graph of every pass for a Flux that they all fit."""
    return build(flux_case())


def test_legal_passes_stand_in_stage_order() -> None:
    late, early = a_pass("a", Stage.COMPILE), a_pass("z", Stage.QUANTIZE)
    assert [one.name for one in build(flux_case(), [late, early]).legal] == ["z", "a"]


def test_an_unmet_need_excludes_with_its_sentence_and_source() -> None:
    need = Need(lambda case: f"fp8 needs 8.9; this is {case.device.name}", "PTX ISA 8.1")
    graph = build(flux_case(), [a_pass("fp8", needs=(need,)), a_pass("other")])
    assert graph.excluded == {"fp8": "fp8 needs 8.9; this is a cpu (PTX ISA 8.1)"}
    assert [one.name for one in graph.legal] == ["other"]
    assert graph.why_not(plan_of(fp8={})) == (
        "fp8 is not legal here: needs 8.9; this is a cpu (PTX ISA 8.1)"
    )


def test_a_missing_or_old_library_excludes_with_what_to_install() -> None:
    passes = [a_pass("a", imports=("no-such-library>=2",)), a_pass("b", imports=("networkx>=99",))]
    graph = build(flux_case(), passes)
    assert "pip install 'no-such-library>=2'" in graph.excluded["a"]
    assert "networkx is 3" in graph.excluded["b"]


def test_two_owners_of_one_thing_are_refused_with_both_names() -> None:
    passes = [a_pass("tea", owns=("denoiser.reuse",)), a_pass("fbc", owns=("denoiser.reuse",))]
    graph = build(flux_case(), passes)
    said = graph.why_not(plan_of(fbc={}, tea={}))
    assert said is not None and "fbc and tea both own denoiser.reuse: keep one" in said
    assert [(clash.a, clash.b, clash.always) for clash in graph.clashes] == [("tea", "fbc", True)]
    assert graph.stacks() == (("fbc",), ("tea",))


def test_an_avoided_pass_is_refused_with_reason_and_source() -> None:
    avoid = Avoid("b", "it writes over the cached tensor", "sglang PR#33827")
    graph = build(flux_case(), [a_pass("a", avoids=(avoid,)), a_pass("b")])
    assert graph.why_not(plan_of(a={}, b={})) == (
        "a avoids b: it writes over the cached tensor (sglang PR#33827)"
    )
    assert graph.advice(plan_of(a={}, b={})) == ()


@pytest.mark.parametrize("verdict", ["slower", "risky"])
def test_slower_and_risky_pairs_are_legal_but_advised_against(verdict: Any) -> None:
    avoid = Avoid("b", "graph breaks", "R30", verdict)
    graph = build(flux_case(), [a_pass("a", avoids=(avoid,)), a_pass("b")])
    assert graph.why_not(plan_of(a={}, b={})) is None
    assert graph.advice(plan_of(a={}, b={})) == ("a avoids b: graph breaks (R30)",)
    assert graph.clashes[0].verdict == verdict
    assert graph.stacks() == (("a", "b"),)


def test_a_conditional_clash_depends_on_the_settings_of_both() -> None:
    avoid = Avoid("b", "too much", "R1", when=lambda case, a, b: a.amount > 0.5 and b.amount > 0.5)
    graph = build(flux_case(), [a_pass("a", avoids=(avoid,)), a_pass("b")])
    assert graph.clashes[0].always is False
    assert graph.stacks() == (("a", "b"),)
    assert graph.why_not(plan_of(a={"amount": 0.9}, b={"amount": 0.1})) is None
    assert graph.why_not(plan_of(a={"amount": 0.9}, b={"amount": 0.9})) is not None


def test_one_cache_a_denoiser_of_steps_or_of_attention() -> None:
    passes = [a_pass("pab", owns=("denoiser.attention_reuse",)),
              a_pass("tea", owns=("denoiser.step_reuse",)), a_pass("other")]  # fmt: skip
    graph = build(flux_case(), passes)
    said = graph.why_not(plan_of(pab={}, tea={}))
    assert said is not None and said.startswith(
        "pab counts on attention that tea does not run at the steps it skips"
    )
    assert said.endswith("one cache a denoiser (diffusers CacheMixin.enable_cache and "
                         "TensorRT-LLM VisualGen take one cache at a time)")  # fmt: skip
    assert graph.stacks() == (("other", "pab"), ("other", "tea"))


def test_pairwise_legal_stacks_are_found_among_many_clashes() -> None:
    passes = [a_pass("a", owns=("x",)), a_pass("b", owns=("x", "y")), a_pass("c", owns=("y",))]
    assert build(flux_case(), passes).stacks() == (("a", "c"), ("b",))


def test_an_unknown_pass_in_a_plan_is_answered_with_the_nearest(real: Graph) -> None:
    assert real.why_not(plan_of(first_block_cash={})) == (
        "no pass is called 'first_block_cash': did you mean first_block_cache?"
    )


def test_a_plan_out_of_order_a_pass_twice_and_bad_settings_are_answered(real: Graph) -> None:
    said = real.why_not(plan_of(compile_blocks={}, int8_dynamic={}))
    assert said is not None and "quantize comes before compile" in said
    twice = Plan(passes=(PlannedPass(name="steps"), PlannedPass(name="steps")))
    assert real.why_not(twice) == "steps stands twice in the plan: name it once"
    said = real.why_not(plan_of(steps={"num_inference_steps": "many"}))
    assert said is not None and "steps.num_inference_steps cannot be 'many'" in said


def test_passes_left_out_and_asked_for_are_respected(real: Graph) -> None:
    graph = build(flux_case(), with_=["tea_cache"], without=["steps"])
    assert "--without" in graph.excluded["steps"]
    assert "first_block_cache and tea_cache both own" in graph.excluded["first_block_cache"]
    assert graph.why_not(BASELINE) == "the plan lacks tea_cache, which was asked for with --with"
    assert graph.why_not(Plan.of({"tea_cache": {}})) is None
    assert all("tea_cache" in stack for stack in graph.stacks())
    assert real.why_not(BASELINE) is None


def test_what_cannot_be_asked_for_is_a_usage_error_with_the_reason() -> None:
    with pytest.raises(UsageError, match=r"cannot both be asked for.*step_reuse"):
        build(flux_case(), with_=["tea_cache", "first_block_cache"])
    with pytest.raises(UsageError, match="guidance_interval cannot be used here") as caught:
        build(flux_case(guidance="none"), with_=["guidance_interval"])
    assert "guidance is none" in caught.value.way_out
    with pytest.raises(UsageError, match=r"cannot be used here.*--without"):
        build(flux_case(), with_=["steps"], without=["steps"])
    with pytest.raises(UsageError, match="did you mean tea_cache"):
        build(flux_case(), without=["teacache"])


def test_every_pass_fits_the_full_flux_and_every_exclusion_names_a_source(real: Graph) -> None:
    assert {one.name for one in real.legal} | set(real.excluded) == set(registry.names())
    assert len(real.legal) >= 6
    bare = TRAITS.model_copy(update={"cacheable": False, "skippable": False})
    poor = build(flux_case(guidance="none", traits=bare))
    assert {"guidance_interval", "first_block_cache"} <= set(poor.excluded)
    for line in poor.exclusions:
        assert line.endswith(")") and "(" in line and len(line) > 30


def test_step_reuse_at_few_steps_is_refused(real: Graph) -> None:
    said = real.why_not(Plan.of({"steps": {"num_inference_steps": 8}, "tea_cache": {}}))
    assert said is not None and "tea_cache finds nothing to reuse in 8 steps" in said
    assert real.why_not(Plan.of({"steps": {"num_inference_steps": 9}, "tea_cache": {}})) is None
    assert real.why_not(Plan.of({"steps": {"num_inference_steps": 8}})) is None


def test_an_empty_stretch_of_the_schedule_is_refused(real: Graph) -> None:
    said = real.why_not(Plan.of({"guidance_interval": {"start": 0.5, "stop": 0.5}}))
    assert said is not None and "guidance_interval covers no step from start 0.5" in said


def test_a_pass_that_changes_nothing_is_refused(real: Graph) -> None:
    said = real.why_not(Plan.of({"steps": {"num_inference_steps": 50}}))
    assert said is not None and "the reference call has num_inference_steps = 50 already" in said


def test_more_steps_than_the_reference_is_advised_against(real: Graph) -> None:
    plan = Plan.of({"steps": {"num_inference_steps": 60}})
    assert real.why_not(plan) is None
    assert "60 steps are slower than the reference's 50" in real.advice(plan)[0]


def test_three_passes_can_be_worse_than_any_two() -> None:
    passes = [
        a_pass("cache", owns=("denoiser.step_reuse",)),
        a_pass("sage", Stage.ATTENTION, family=Family.ATTENTION),
        a_pass("compile", Stage.COMPILE, family=Family.COMPILATION),
    ]
    graph = build(flux_case(), passes)
    assert graph.advice(plan_of(sage={}, cache={})) == ()
    said = graph.advice(plan_of(sage={}, cache={}, compile={}))
    assert len(said) == 1 and "sglang#19471" in said[0]


def test_seeds_are_legal_distinct_and_climb_the_ladder(real: Graph) -> None:
    found = seeds(real, real.case, GOAL)
    assert 6 <= len(found) <= MOST
    assert len(set(found)) == len(found) and BASELINE not in found
    assert [real.why_not(plan) for plan in found] == [None] * len(found)
    first = [next(i for i, plan in enumerate(found) if name in plan)
             for name in ("int8_dynamic", "step_mask", "steps")]  # fmt: skip
    assert first == sorted(first)
    assert any({"int8_dynamic", "step_mask", "steps"} <= set(plan.names) for plan in found)
    assert not any("tea_cache" in plan for plan in found), "another cache of steps stands for it"


def test_every_legal_pass_or_one_that_it_cannot_stand_beside_is_in_a_seed(real: Graph) -> None:
    stand = {name for plan in seeds(real, real.case, GOAL) for name in plan.names}
    for one in (one for one in real.legal if one.name not in stand):
        beside = (Plan.of({one.name: {}, other: {}}) for other in sorted(stand))
        assert any(real.why_not(plan) for plan in beside), one.name


def test_a_goal_near_lossless_leaves_other_trajectories_to_the_sampler(real: Graph) -> None:
    found = seeds(real, real.case, Goal(max_lpips=0.02, prefer="speed"))
    assert found and not any("steps" in plan for plan in found)


def test_seeds_hold_what_was_asked_for() -> None:
    graph = build(flux_case(), with_=["guidance_interval"])
    found = seeds(graph, graph.case, GOAL)
    assert found and all("guidance_interval" in plan for plan in found)


@pytest.mark.parametrize(("name", "said"), [
    ("graph.jpgg", "end it in .png, .svg or .pdf"), ("graph", "end it in .png"),
    ("file/graph.png", "name a file that this user may write to"),
])  # fmt: skip
def test_a_picture_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        build(flux_case()).picture(tmp_path / name)
    assert caught.value.value == str(tmp_path / name)


def test_the_picture_is_drawn_with_clashes_and_exclusions(tmp_path: Path) -> None:
    graph = build(flux_case(guidance="none"))
    graph.picture(tmp_path / "new" / "graph.png")
    assert (tmp_path / "new" / "graph.png").read_bytes().startswith(b"\x89PNG")
    graph.picture(tmp_path / "graph.svg")
    drawn = (tmp_path / "graph.svg").read_text()
    assert "tea_cache" in drawn and "one of the two" in drawn and "Not legal here" in drawn
