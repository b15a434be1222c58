"""The unconditional branch at some steps only: when it runs, and what stands in for it."""

from typing import Any

import pytest
import torch

from planner.case.case import Case
from planner.case.workload import Workload
from planner.hooks.forecast import weights
from planner.passes import registry
from planner.passes.caching.uncond_cache import UncondCacheSettings, runs
from planner.plans.graph import build
from planner.plans.plan import Plan
from planner.run.apply import LeavesCaseWarning, put_on
from planner.run.pipeline import PipelineSource, case_of
from tests.passes.driving import Bench, Executed, shared_bench, traces, unet_bench
from tests.passes.watching import Watched
from tests.passes.whole import Around, Scripted, latents, on
from tests.test_families import denoiser
from tests.tiny import tiny_flux

PASS = registry.get("uncond_cache")
EVERY_SECOND = {"interval": 2, "first": 3}


def steps_run(**settings: int) -> str:
    return "".join("01"[runs(UncondCacheSettings(**settings), step)] for step in range(10))


def test_the_first_steps_run_and_then_every_so_many() -> None:
    assert steps_run(interval=2, first=3) == "1110101010"
    assert steps_run(interval=4, first=1) == "1000100010"
    assert steps_run(interval=3, first=2) == "1100100100"
    assert steps_run(interval=1, first=1) == "1" * 10


@pytest.mark.parametrize("order", [0, 1])
def test_a_spared_step_is_the_conditional_output_and_the_forecast_difference(
    bench: Bench, order: int
) -> None:
    with bench.put({"uncond_cache": EVERY_SECOND | {"order": order}}) as handle:
        with Around(bench.pipe.transformer) as seen, Executed(bench.pipe) as executed:
            bench.draw()
        counted = handle.stats["uncond_cache"]
    places = [float(one) for one in bench.pipe.scheduler.sigmas[:10]]
    cond, uncond = seen.outputs[0::2], seen.outputs[1::2]
    check_forecast(str(counted["mask_uncond"]), places, cond, uncond, order)
    assert counted["mask_uncond"] == "1110101010" and executed.forwards == 10 + 6
    work = PASS.effect(bench.work, UncondCacheSettings(**EVERY_SECOND), None)
    assert work.forwards == executed.forwards


def check_forecast(mask: str, places: list[float], cond: list[torch.Tensor],
                   uncond: list[torch.Tensor], order: int) -> None:  # fmt: skip
    """Skipped steps are the conditional output and the difference on a line over the places."""
    known: list[int] = []
    for step, one in enumerate(mask):
        if one == "1":
            known.append(step)
            continue
        last = known[-(order + 1) :]
        parts = weights([places[i] for i in last], places[step], order)
        apart = sum(part * (uncond[i] - cond[i]) for part, i in zip(parts, last, strict=True))
        assert torch.allclose(uncond[step], cond[step] + apart, atol=1e-5), step
        assert not torch.equal(uncond[step], cond[step])


class Batches(Watched):
    """Counts the images that a denoiser's first layer sees in each forward."""

    def __init__(self, layer: Any) -> None:
        self.sizes: list[int] = []
        self._hooks = [layer.register_forward_pre_hook(self._see)]

    def _see(self, module: Any, args: Any) -> None:
        self.sizes.append(args[0].shape[0])


SD3_CALL = {"height": 64, "width": 64, "num_inference_steps": 10, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def sd3() -> tuple[Any, Case, dict[str, torch.Tensor]]:
    """A pipeline with both branches in one forward, without encoders, and what they would give."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline(
        transformer=denoiser("SD3Transformer2DModel")[0], vae=tiny_flux().vae,
        scheduler=FlowMatchEulerDiscreteScheduler(), text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    texts = {name: torch.randn(1, 8, 32) for name in ("prompt_embeds", "negative_prompt_embeds")}
    texts |= {f"{kind}pooled_prompt_embeds": torch.randn(1, 32) for kind in ("", "negative_")}
    source = PipelineSource(model="tests.passes.test_uncond_cache:sd3")
    workload = Workload(call=SD3_CALL, guidance="batched", prompts="0" * 64)
    return pipe, case_of(pipe, source, workload), texts


def drawn(pipe: Any, texts: dict[str, torch.Tensor], **call: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    found: torch.Tensor = pipe(output_type="latent", generator=generator, **texts, **call).images
    return found


@pytest.mark.filterwarnings("ignore::planner.run.apply.LeavesCaseWarning")
@pytest.mark.parametrize("order", [0, 1])
def test_in_batched_guidance_the_denoiser_gets_the_conditional_half_alone(
    sd3: tuple[Any, Case, dict[str, torch.Tensor]], order: int
) -> None:
    pipe, case, texts = sd3
    plan = Plan.of({"uncond_cache": EVERY_SECOND | {"order": order}})
    assert build(case).why_not(plan) is None
    untouched = drawn(pipe, texts, **SD3_CALL)
    with put_on(pipe, plan, case) as handle:
        with Around(pipe.transformer) as seen, Batches(pipe.transformer.pos_embed) as batches:
            spared = drawn(pipe, texts)
        mask = str(handle.stats["uncond_cache"]["mask_uncond"])
    assert mask == "1110101010" and batches.sizes == [1 + int(one) for one in mask]
    places = [float(one) for one in pipe.scheduler.sigmas[:10]]
    halves = [one.chunk(2) for one in seen.outputs]
    check_forecast(mask, places, [b for _, b in halves], [a for a, _ in halves], order)
    assert not torch.equal(spared, untouched) and traces(pipe.transformer) == []
    assert torch.equal(drawn(pipe, texts, **SD3_CALL), untouched)


@pytest.mark.filterwarnings("ignore::planner.run.apply.LeavesCaseWarning")
def test_the_conditional_half_is_what_it_is_with_the_other_half_beside_it(
    sd3: tuple[Any, Case, dict[str, torch.Tensor]],
) -> None:
    pipe, case, texts = sd3
    with Around(pipe.transformer) as whole:
        drawn(pipe, texts, **SD3_CALL)
    # At the first spared step the latents are still those of the untouched call.
    plan = Plan.of({"uncond_cache": EVERY_SECOND})
    with put_on(pipe, plan, case), Around(pipe.transformer) as spared:
        drawn(pipe, texts)
    for step in range(4):
        assert torch.equal(spared.latents[step], whole.latents[step])
        mine, theirs = spared.outputs[step].chunk(2)[1], whole.outputs[step].chunk(2)[1]
        assert torch.allclose(mine, theirs, atol=1e-5), step


def test_a_batch_of_other_parts_is_left_alone() -> None:
    """Images without guidance at a step, or three parts, are no two halves of the same images."""
    module, images = Scripted([1.0] * 20), torch.randn(2, 4, 2, 2)
    halves, parts = torch.cat([images] * 2), [torch.cat([images] * 3), images[:1]]
    with on(module, {"uncond_cache": {"interval": 8, "first": 1}}, 10, guidance="batched") as under:
        with under.clock.call():
            for batch in (halves, images, *parts, halves, halves):
                assert module(batch).shape == batch.shape
                under.step()
        assert under.statistics["uncond_cache"]["mask_uncond"] == "1---10"
    assert module.ran == 6


@pytest.mark.parametrize("guided", [True, False])
def test_of_more_prompts_than_the_case_had_both_halves_are_told_apart(guided: bool) -> None:
    """The case's batch is one: two images without guidance are as many as one image with it."""
    module, images = Scripted([1.0] * 20), torch.randn(2, 4, 2, 2)
    batch = torch.cat([images] * 2) if guided else images
    settings = {"uncond_cache": {"interval": 8, "first": 1}}
    with on(module, settings, 10, guidance="batched") as under, under.clock.call():
        for _ in range(3):
            assert module(batch).shape == batch.shape
            under.step()
        mask = under.statistics["uncond_cache"].get("mask_uncond")
    assert mask == ("100" if guided else None)


def test_a_u_nets_output_comes_back_in_one_piece() -> None:
    bench = unet_bench()
    with bench.put({"uncond_cache": EVERY_SECOND}) as handle:
        with Around(bench.pipe.unet) as seen, Batches(bench.pipe.unet.conv_in) as batches:
            bench.draw()
        mask = str(handle.stats["uncond_cache"]["mask_uncond"])
    assert batches.sizes == [1 + int(one) for one in mask]
    assert {one.shape[0] for one in seen.outputs} == {2} and set(seen.kinds) == {"tuple"}
    assert torch.equal(bench.draw(), bench.untouched)


def test_the_work_of_a_spared_half_is_half_the_work() -> None:
    bench = unet_bench()
    before, after = bench.work, PASS.effect(bench.work, UncondCacheSettings(**EVERY_SECOND), None)
    (whole,), (spared,) = ([one for one in work.phases if one.name == "denoise"]
                           for work in (before, after))  # fmt: skip
    assert spared.calls == whole.calls
    assert all(op.share == pytest.approx((6 + 4 / 2) / 10) for op in spared.operations)


def test_inside_a_cache_of_whole_steps_only_computed_steps_count(bench: Bench) -> None:
    mask = "1110110101"  # of the seven computed steps the first three run, the fifth, the seventh
    plan = {"uncond_cache": EVERY_SECOND, "step_mask": {"mask": mask, "order": 0}}
    with bench.put(plan) as handle, Executed(bench.pipe) as executed:
        bench.draw()
        stats = handle.stats
    assert stats["step_mask"]["mask_cond"] == stats["step_mask"]["mask_uncond"] == mask
    assert stats["uncond_cache"]["mask_uncond"] == "111-01-0-1"
    assert executed.forwards == 7 + 5


def test_within_a_guidance_interval_alone_the_branches_differ(bench: Bench) -> None:
    plan = {"uncond_cache": EVERY_SECOND, "guidance_interval": {"start": 0.2, "stop": 0.8}}
    assert build(bench.case).why_not(Plan.of(plan)) is None
    with bench.put(plan) as handle, Around(bench.pipe.transformer) as seen:
        bench.draw()
        assert handle.stats["uncond_cache"]["mask_uncond"] == "--111010"
    pairs = zip(seen.outputs[0::2], seen.outputs[1::2], strict=True)
    alike = [torch.equal(cond, uncond) for cond, uncond in pairs]
    assert alike == [True] * 2 + [False] * 6 + [True] * 2


@pytest.mark.parametrize("cache", [
    {"taylor_seer": {}}, {"mag_cache": {}}, {"step_mask": {"tensor": "residual"}},
    {"step_mask": {"tensor": "groups"}}, {"sea_cache": {"tensor": "residual"}},
])  # fmt: skip
def test_over_gaps_a_cache_of_the_block_stack_would_begin_anew(
    bench: Bench, cache: dict[str, dict[str, Any]]
) -> None:
    said = build(bench.case).why_not(Plan.of({"uncond_cache": {}} | cache))
    assert f"{next(iter(cache))} begins anew after every step at which uncond_cache" in str(said)


def test_an_interval_of_one_draws_the_untouched_image_and_is_said(bench: Bench) -> None:
    with bench.put({"uncond_cache": {"interval": 1}}) as handle:
        assert torch.equal(bench.draw(), bench.untouched)
        said = handle.complaints()["uncond_cache"]
    assert said == "uncond_cache reused none of 10 forwards at interval 1"


def test_a_call_that_broke_off_and_one_without_guidance_leave_nothing(bench: Bench) -> None:
    def stop(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        if step == 4:
            raise InterruptedError
        return {}

    with bench.put({"uncond_cache": EVERY_SECOND}) as handle:
        fresh = bench.draw()
        with pytest.raises(InterruptedError):
            bench.draw("two blue star", callback_on_step_end=stop)
        assert torch.equal(bench.draw(), fresh)
        with pytest.warns(LeavesCaseWarning):
            alone = bench.draw(true_cfg_scale=1.0)
        assert torch.equal(bench.draw(), fresh)
        assert handle.stats["uncond_cache"]["mask_uncond"] == "1110101010"
    assert torch.equal(alone, bench.draw(true_cfg_scale=1.0))


def test_outside_a_pipeline_call_every_forward_runs() -> None:
    module = Scripted([1.0] * 6)
    with on(module, {"uncond_cache": {"interval": 8, "first": 1}}, 10, guidance="batched") as under:
        for _ in range(6):
            module(latents(1.0, (2, 4, 2, 2)))
        assert module.ran == 6 and under.statistics["uncond_cache"] == {}


@pytest.mark.parametrize(("change", "said"), [
    ({"guidance": "embedded"}, "needs true guidance; this call's is embedded"),
    ({"guidance": "none"}, "needs true guidance; this call's is none"),
    ({"guidance": "batched", "pipeline": "ZImagePipeline"}, "ZImagePipeline has it last"),
    ({"guidance": "batched", "pipeline": "LuminaPipeline"}, "LuminaPipeline has it last"),
    ({"branches": ("uncond", "cond")}, "this has uncond, cond"), ({"branches": ()}, "has nothing"),
])  # fmt: skip
def test_guidance_that_cannot_be_spared_is_refused(change: dict[str, Any], said: str) -> None:
    why = build(changed(**change)).why_not(Plan.of({"uncond_cache": {}}))
    assert said in str(why) and "uncond_cache is not legal here" in str(why)


def test_where_the_unconditional_half_comes_first_it_is_legal() -> None:
    other = changed(guidance="batched", pipeline="HunyuanDiTPipeline")
    assert build(other).why_not(Plan.of({"uncond_cache": {}})) is None


def changed(**change: Any) -> Case:
    case = shared_bench().case
    traits = case.model.traits.model_copy(update={
        key: value for key, value in change.items() if key == "branches"})  # fmt: skip
    pipeline = change.get("pipeline", case.model.pipeline)
    model = case.model.model_copy(update={"traits": traits, "pipeline": pipeline})
    guidance = change.get("guidance", case.workload.guidance)
    workload = case.workload.model_copy(update={"guidance": guidance})
    return case.model_copy(update={"model": model, "workload": workload})
