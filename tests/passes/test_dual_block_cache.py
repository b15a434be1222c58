"""cache-dit's DBCache as a pass: what it leaves alone, reuses, refuses and foretells."""

from typing import Any

import pytest
import torch

from planner.passes import registry
from planner.passes.caching.dual_block_cache import DualBlockCacheSettings, decided, masked
from planner.plans.graph import build
from planner.plans.plan import Plan
from planner.run.apply import LeavesCaseWarning, put_on
from tests.passes.driving import Bench, Executed, declared_bench, traces
from tests.test_two_experts import draw
from tests.tiny import WAN_CALL, tiny_case, tiny_wan

NAME = "dual_block_cache"
PASS = registry.get(NAME)


def settings(**values: Any) -> DualBlockCacheSettings:
    return DualBlockCacheSettings(**{"fn": 1, "warmup": 2, "threshold": 0.3} | values)


def plan(**values: Any) -> dict[str, dict[str, Any]]:
    return {NAME: settings(**values).model_dump()}


def test_on_it_leaves_the_pipeline_s_class_alone_and_off_it_leaves_nothing(bench: Bench) -> None:
    def everything() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, one in bench.pipe.transformer.named_modules(prefix="transformer"):
            # Every draw makes the denoiser an empty registry of hooks; the fixture looks inside.
            found[name] = {key: value for key, value in vars(one).items() if "_hook" not in key}
            found[f"in {name}"] = list(one._modules.items())
            found[str(type(one))] = dict(vars(type(one)))
        return found | {str(type(bench.pipe)): dict(vars(type(bench.pipe)))}

    bench.draw()
    before, kind = everything(), type(bench.pipe)
    with bench.put(plan(threshold=1.0)):
        bench.draw()
        assert dict(vars(kind)) == before[str(kind)]
        assert list(bench.pipe.transformer._modules.items()) == before["in transformer"]
    assert everything() == before


def test_a_branch_that_was_not_called_for_some_steps_begins_anew(bench: Bench) -> None:
    interval = {"guidance_interval": {"start": 0.3, "stop": 0.8}}
    with bench.put(plan(threshold=1.0, warmup=2) | interval) as handle:
        bench.draw()
        stats = handle.stats[NAME]
    assert stats["mask_cond"] == "1100000000" and stats["mask_uncond"] == "---11000"


def test_a_mask_is_that_of_the_call_s_own_steps(bench: Bench) -> None:
    with bench.put(plan(mask="medium", policy="static")) as handle:
        for steps in (10, 28):
            if steps != 10:
                with pytest.warns(LeavesCaseWarning):
                    bench.draw(num_inference_steps=steps)
            else:
                bench.draw()
            mask = masked("medium", steps)
            assert handle.stats[NAME]["mask_cond"] == handle.stats[NAME]["mask_uncond"] == mask
    assert masked("medium", 28) == "1111110110001100011000110001" and masked("ultra", 3) == "111"


def test_two_experts_are_both_cached_and_the_second_begins_anew() -> None:
    pipe = tiny_wan(experts=2)
    untouched, case = draw(pipe), tiny_case(pipe, WAN_CALL)
    one = settings(threshold=1.0, warmup=1)
    with put_on(pipe, Plan.of({NAME: one.model_dump()}), case) as handle:
        cached = draw(pipe)
        stats = handle.stats[NAME]
    assert stats["mask_cond"] == stats["mask_uncond"] == "1100"
    assert not torch.equal(cached, untouched) and torch.equal(draw(pipe), untouched)
    assert traces(pipe.transformer) == traces(pipe.transformer_2) == []


def test_the_work_of_two_experts_is_cut_for_each() -> None:
    from planner.prediction.meta import work_of

    work = work_of("wan2.2-t2v-a14b", height=64, width=64, frames=5, steps=40)
    one = settings(mask="medium", policy="static")
    after = PASS.effect(work, one, None)
    denoise = [phase for phase in after.phases if phase.name == "denoise"]
    first = round(denoise[0].calls)
    whole = masked("medium", 40)
    for phase, mask in zip(denoise[::2], (whole[:first], "1" + whole[first + 1 :]), strict=True):
        shares = {".".join(op.path.split(".")[:2]): op.share for op in phase.operations if op.block}
        assert shares["blocks.0"] == 1.0
        assert shares["blocks.1"] == pytest.approx(mask.count("1") / len(mask))


def test_at_threshold_0_nothing_is_reused_and_that_is_said(bench: Bench) -> None:
    with bench.put(plan(threshold=0.0)) as handle:
        assert torch.equal(bench.draw(), bench.untouched)
        said = handle.complaints()[NAME]
    assert said == "dual_block_cache reused none of 20 forwards at threshold 0"


@pytest.mark.parametrize(("values", "said"), [
    ({"bn": 1, "calibrator": "foca"}, "by last blocks or by a calibrator; bn is 1 and calibrator"),
    ({"fn": 3, "bn": 1}, "leaves none of 4 blocks at fn 3 and bn 1"),
    ({"warmup": 10}, "leaves none of 10 steps at warmup 10"),
])  # fmt: skip
def test_settings_that_clash_or_reuse_nothing_are_refused(
    bench: Bench, values: dict[str, Any], said: str
) -> None:
    assert said in str(build(bench.case).why_not(Plan.of(plan(**values))))


def test_what_cannot_be_cached_here_is_said_with_the_reason(bench: Bench) -> None:
    def missing(pipeline: str = "FluxPipeline", kind: str = "", **call: Any) -> tuple[str, ...]:
        traits = bench.case.model.traits
        model = bench.case.model.model_copy(update={
            "pipeline": pipeline,
            "traits": traits.model_copy(update={"denoiser_class": kind or traits.denoiser_class}),
        })  # fmt: skip
        workload = bench.case.workload.model_copy(
            update={"call": bench.case.workload.call | call})
        return PASS.missing(bench.case.model_copy(
            update={"model": model, "workload": workload}))

    assert missing() == ()
    assert missing(kind="ChromaTransformer2DModel") == (
        "dual_block_cache needs blocks that are all called alike; of ChromaTransformer2DModel "
        "this is not known",)
    assert "ControlNet adds between blocks" in missing("FluxControlNetPipeline")[0]
    assert missing(num_inference_steps=8) == (
        "dual_block_cache needs at least 9 steps; this call has 8",)
    assert missing(kind="QwenImageTransformer2DModel", num_inference_steps=4) == ()
    assert "at least 4 steps" in missing(
        kind="QwenImageTransformer2DModel", num_inference_steps=3)[0]
    assert missing(skip_guidance_layers="7,8") == (
        "dual_block_cache needs every block called; skip_guidance_layers is 7,8",)


def test_two_experts_may_be_cached_by_it_alone() -> None:
    graph = build(tiny_case(tiny_wan(experts=2), WAN_CALL, num_inference_steps=20))
    assert NAME in {one.name for one in graph.legal}


def test_the_library_is_asked_for_by_name_where_it_is_missing(bench: Bench) -> None:
    device = bench.case.device.model_copy(update={"libraries": {"cache-dit": "1.4.0"}})
    graph = build(bench.case.model_copy(update={"device": device}))
    assert "cache-dit is 1.4.0, but needed is cache-dit>=1.5.3,<1.6" in graph.excluded[NAME]


@pytest.mark.parametrize("values", [
    {"mask": "fast", "policy": "static"}, {"threshold": 1.0, "most": 2}, {"threshold": 1.0},
    {"threshold": 1.0, "mask": "ultra", "warmup": 3}, {"threshold": 0.0},
], ids=lambda values: " ".join(map(str, values.values())))  # fmt: skip
def test_what_no_change_decides_is_foretold_to_the_step(
    bench: Bench, values: dict[str, Any]
) -> None:
    one = settings(**values)
    with bench.put({NAME: one.model_dump()}) as handle, Executed(bench.pipe) as executed:
        bench.draw()
        stats = handle.stats[NAME]
    assert stats["mask_cond"] == stats["mask_uncond"] == decided(one, 10, 0, 10)
    assert PASS.effect(bench.work, one, None).computed_forwards == executed.stacks


@pytest.mark.parametrize("values", [
    {"threshold": 0.3}, {"threshold": 0.5, "most": 2}, {"threshold": 0.6, "mask": "fast"},
], ids=lambda values: " ".join(map(str, values.values())))  # fmt: skip
def test_what_the_first_block_showed_foretells_the_steps(
    bench: Bench, values: dict[str, Any]
) -> None:
    one = settings(**values)
    with bench.put({NAME: one.model_dump()}) as handle:
        bench.draw()
        stats = handle.stats[NAME]
    assert PASS.masks is not None
    (foretold,) = PASS.masks(one, bench.telemetry)
    assert foretold == {"cond": stats["mask_cond"], "uncond": stats["mask_uncond"]}
    assert 0 < int(stats["reused"]) == 20 - PASS.effect(
        bench.work, one, bench.telemetry).computed_forwards  # fmt: skip


def test_both_ends_of_a_list_keep_their_whole_share_of_the_work(bench: Bench) -> None:
    one = settings(threshold=1.0, bn=1)
    after = PASS.effect(bench.work, one, None)
    shares = {".".join(op.path.split(".")[:2]): op.share for op in after.phases[1].operations
              if op.block}  # fmt: skip
    assert list(shares.values()) == [1.0, 0.2, 0.2, 1.0]
    unsure = PASS.effect(bench.work, settings(), None)
    assert unsure.flops == bench.work.flops and unsure.kept > 0


@pytest.mark.parametrize(("model", "lists"), [
    ("flux.2-dev", [8, 48]), ("hunyuanvideo", [20, 40]),
])  # fmt: skip
def test_lists_that_cache_dit_keeps_apart_have_ends_of_their_own(
    model: str, lists: list[int]
) -> None:
    from planner.prediction.meta import work_of

    work = work_of(model, height=64, width=64, frames=1, steps=10)
    after = PASS.effect(work, settings(fn=2, threshold=1.0), None)
    phase = next(phase for phase in after.phases if phase.name == "denoise")
    shares = {tuple(op.path.split(".")[:2]): op.share for op in phase.operations if op.block}
    always = [place for place, share in shares.items() if share == 1.0]
    assert len(shares) == sum(lists) and len(always) == 2 * len(lists)


def held(value: Any) -> dict[int, int]:
    """Bytes of every tensor that a context of cache-dit's holds."""
    if isinstance(value, torch.Tensor):
        return {value.data_ptr(): value.nbytes}
    inside = list(value.values()) if isinstance(value, dict) else value
    if type(value).__module__.startswith("cache_dit"):
        inside = list(vars(value).values())
    if not isinstance(inside, list | tuple):
        return {}
    return {key: size for one in inside for key, size in held(one).items()}


@pytest.mark.parametrize(("calibrator", "order"), [
    ("none", 1), ("taylorseer", 1), ("taylorseer", 2), ("foca", 1),
])  # fmt: skip
def test_the_effect_holds_the_bytes_that_cache_dit_does(
    bench: Bench, calibrator: str, order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cache_dit.caching import CachedContext

    contexts: list[Any] = []
    monkeypatch.setattr(CachedContext, "__post_init__", wrapped(CachedContext, contexts))
    sizes: list[int] = []

    def note(pipe: Any, *_: Any) -> dict[str, Any]:
        sizes.append(sum(held(contexts).values()))
        return {}

    one = settings(threshold=0.0, calibrator=calibrator, order=order)
    with bench.put({NAME: one.model_dump()}):
        bench.draw(callback_on_step_end=note)
    after = PASS.effect(bench.work, one, None)
    # The first blocks' residual is that of the image alone: the work counts the text as well.
    assert max(sizes) <= after.kept <= 1.3 * max(sizes)


def wrapped(kind: Any, seen: list[Any]) -> Any:
    """The constructor's last step, which remembers what it makes."""
    inner = kind.__post_init__

    def post_init(context: Any) -> None:
        inner(context)
        seen.append(context)

    return post_init


def test_dmd_is_counted_with_the_modes_that_it_fits() -> None:
    bench = declared_bench()
    kept = [PASS.effect(bench.work, settings(calibrator=one), None).kept for one in ("foca", "dmd")]
    assert kept[1] / kept[0] == pytest.approx(51 / 5)


def test_thresholds_reach_from_the_least_change_to_always(bench: Bench) -> None:
    assert PASS.narrow is not None
    found = PASS.narrow(bench.case, bench.telemetry)
    domain = found["threshold"]
    assert 0 < (domain.low or 0) < (domain.high or 0) <= 1.0
    assert found["fn"].high == 2 and found["bn"].choices == (0, 1)
    assert "threshold" not in PASS.narrow(bench.case, None)


def test_it_says_nothing_on_standard_output(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    with bench.put(plan()):
        bench.draw()
    assert capfd.readouterr().out == ""
