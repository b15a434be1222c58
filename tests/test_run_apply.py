"""Putting a plan on a live pipeline and taking it off."""

import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from planner.case.case import Case
from planner.errors import InvalidFile, TrialFailed, UsageError
from planner.passes import registry
from planner.passes.base import Context, Family, Fidelity, NoSettings, Pass, Stage
from planner.plans.plan import BASELINE, Plan
from planner.run.apply import LeavesCaseWarning, handle_of, put_on
from planner.run.calls import reference_call
from tests.tiny import render, tiny_case, tiny_flux

Log = list[str]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_flux()


@pytest.fixture(scope="module")
def case(pipe: Any) -> Case:
    return tiny_case(pipe, num_inference_steps=3)


def probe(name: str, log: Log, **more: Any) -> Pass:
    """A pass that writes down when it is put on and taken off."""

    def apply(pipeline: Any, settings: Any, context: Context) -> Callable[[], None]:
        log.append(f"{name} on")
        context.memo["times"] = context.memo.get("times", 0) + 1
        context.statistics["times"] = context.memo["times"]
        return lambda: log.append(f"{name} off")

    parts: dict[str, Any] = {
        "family": Family.CACHING, "stage": Stage.CACHE, "fidelity": Fidelity.EXACT,
        "source": "a test", "effect": lambda work, settings, telemetry: work,
        "batch_invariant": True, "apply": apply, "settings": NoSettings,
    }  # fmt: skip
    return Pass(name=name, **(parts | more))


def plan_of(monkeypatch: pytest.MonkeyPatch, *passes: Pass) -> Plan:
    """A plan of passes that exist in this test alone."""
    monkeypatch.setattr(registry, "get", {p.name: p for p in passes}.__getitem__)
    return Plan.of({p.name: {} for p in passes})


def draw(pipe: Any, prompt: Any = "a red circle", **call: Any) -> Any:
    """Call the pipeline as a user does, with nothing but what to draw."""
    import torch

    generator = torch.Generator("cpu").manual_seed(0)
    return pipe(prompt, **{"generator": generator, "output_type": "np"} | call).images


def test_a_plain_call_under_the_empty_plan_is_the_reference_call(pipe: Any, case: Case) -> None:
    expected = render(pipe, num_inference_steps=3)
    with put_on(pipe, BASELINE, case):
        assert np.array_equal(draw(pipe)[0], expected)


def test_the_class_is_swapped_under_its_own_name_and_comes_back(pipe: Any, case: Case) -> None:
    kind = type(pipe)
    handle = put_on(pipe, BASELINE, case)
    assert type(pipe) is not kind and isinstance(pipe, kind)
    assert (type(pipe).__name__, type(pipe).__module__) == (kind.__name__, kind.__module__)
    assert handle_of(pipe) is handle
    handle.remove()
    handle.remove()
    assert type(pipe) is kind and "step" not in vars(pipe.scheduler) and handle_of(pipe) is None


def test_a_pipeline_under_a_plan_is_still_the_same_model(pipe: Any, case: Case) -> None:
    with put_on(pipe, BASELINE, case):
        assert tiny_case(pipe, num_inference_steps=3) == case


def test_passes_go_on_in_plan_order_and_off_in_reverse(
    pipe: Any, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: Log = []
    plan = plan_of(monkeypatch, probe("b", log), probe("a", log, stage=Stage.SAMPLING),
                   probe("c", log, stage=Stage.COMPILE))  # fmt: skip
    put_on(pipe, plan, case).remove()
    assert log == ["a on", "b on", "c on", "c off", "b off", "a off"]


def test_a_pass_that_fails_leaves_the_pipeline_untouched(
    pipe: Any, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(pipeline: Any, settings: Any, context: Context) -> Callable[[], None]:
        raise ValueError("no such layer")

    log: Log = []
    kind = type(pipe)
    plan = plan_of(monkeypatch, probe("a", log), probe("b", log, apply=explode))
    with pytest.raises(TrialFailed, match=r"b could not be put on .*no such layer") as caught:
        put_on(pipe, plan, case)
    assert caught.value.stage == "apply" and caught.value.value == "b" and caught.value.way_out
    assert log == ["a on", "a off"] and type(pipe) is kind and "step" not in vars(pipe.scheduler)


def test_an_error_of_planners_own_passes_through(
    pipe: Any, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pipeline: Any, settings: Any, context: Context) -> Callable[[], None]:
        raise InvalidFile("bad artifact", value="x", way_out="calibrate again")

    plan = plan_of(monkeypatch, probe("a", [], apply=refuse))
    with pytest.raises(InvalidFile, match="bad artifact"):
        put_on(pipe, plan, case)


def test_a_second_plan_on_one_pipeline_is_refused(pipe: Any, case: Case) -> None:
    with put_on(pipe, BASELINE, case), pytest.raises(UsageError, match="already") as caught:
        put_on(pipe, BASELINE, case)
    assert caught.value.value == "baseline" and "remove()" in caught.value.way_out


def test_arguments_that_passes_set_are_the_defaults_of_a_plain_call(
    pipe: Any, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = probe("two_steps", [], call=lambda settings, workload: {"num_inference_steps": 2})
    expected = render(pipe, num_inference_steps=2)
    with put_on(pipe, plan_of(monkeypatch, two), case) as handle:
        assert np.array_equal(draw(pipe)[0], expected)
    assert handle.call == dict(case.workload.call) | {"num_inference_steps": 2}


def test_an_override_warns_once_and_ends_certification(pipe: Any, case: Case) -> None:
    with put_on(pipe, BASELINE, case) as handle:
        with pytest.warns(LeavesCaseWarning, match="num_inference_steps=1 instead of 3") as seen:
            draw(pipe, num_inference_steps=1)
        assert len(seen) == 1 and seen[0].filename == __file__ and not handle.certified
        draw(pipe, num_inference_steps=2)
        with pytest.warns(LeavesCaseWarning, match="2 images a call instead of 1"):
            draw(pipe, ["a red circle", "a blue star"], output_type="latent")


def test_drawing_something_else_in_the_same_way_stays_certified(pipe: Any, case: Case) -> None:
    with put_on(pipe, BASELINE, case) as handle:
        draw(pipe, "a blue star", num_inference_steps=3, height=64, callback_on_step_end=None)
        assert handle.certified


def test_arguments_by_place_are_seen_and_doubled_ones_are_refused(pipe: Any, case: Case) -> None:
    with put_on(pipe, BASELINE, case) as handle:
        pipe("a red circle", None, "", None, 3.0, output_type="latent")
        assert handle.certified
        with pytest.raises(TypeError, match="multiple values for argument 'prompt'"):
            pipe("a red circle", prompt="a blue star")
        with pytest.warns(LeavesCaseWarning, match="true_cfg_scale=2"):
            pipe("a red circle", None, "", None, 2.0, output_type="latent")


def test_another_scheduler_is_followed_and_ends_certification(pipe: Any, case: Case) -> None:
    own = pipe.scheduler
    counted = []

    def note(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        counted.append("step" in vars(pipeline.scheduler))
        return {}

    with put_on(pipe, BASELINE, case) as handle:
        pipe.scheduler = type(own).from_config(own.config, shift=2.0)
        with pytest.warns(LeavesCaseWarning, match="another scheduler"):
            draw(pipe, callback_on_step_end=note)
        assert counted == [True] * 3 and not handle.certified and "step" not in vars(own)
    assert "step" not in vars(pipe.scheduler)
    pipe.scheduler = own


def test_two_calls_at_once_are_refused(pipe: Any, case: Case) -> None:
    inside, go_on = threading.Event(), threading.Event()
    errors: list[UsageError] = []

    def wait(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        inside.set()
        assert go_on.wait(60)
        return {}

    with put_on(pipe, BASELINE, case) as handle:
        thread = threading.Thread(target=draw, args=(pipe,), kwargs={"callback_on_step_end": wait})
        thread.start()
        assert inside.wait(60)
        for act in (lambda: draw(pipe), handle.remove, handle.suspended().__enter__):
            with pytest.raises(UsageError, match="is running on this pipeline") as caught:
                act()
            errors.append(caught.value)
        go_on.set()
        thread.join()
        draw(pipe)
    assert all("one pipeline for each thread" in error.way_out for error in errors)


def test_an_interrupted_call_leaves_no_trace_in_the_next(pipe: Any, case: Case) -> None:
    def stop(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        raise KeyboardInterrupt

    with put_on(pipe, BASELINE, case):
        expected = draw(pipe)
        with pytest.raises(KeyboardInterrupt):
            draw(pipe, callback_on_step_end=stop)
        assert np.array_equal(draw(pipe), expected)


def test_a_suspended_plan_gives_the_untouched_pipeline_and_comes_back(
    pipe: Any, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: Log = []
    memo: dict[str, Any] = {}
    kind = type(pipe)
    with put_on(pipe, plan_of(monkeypatch, probe("a", log)), case, memo=memo) as handle:
        with handle.suspended() as bare:
            assert bare is pipe and type(bare) is kind and log == ["a on", "a off"]
        assert handle_of(pipe) is handle and log == ["a on", "a off", "a on"]
        draw(pipe)
        assert handle.stats == {"a": {"times": 2}} and memo == {"a": {"times": 2}}
    with pytest.raises(UsageError, match="off already"), handle.suspended():
        pass


def test_a_pass_without_an_honest_undo_stays_on(
    pipe: Any, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(monkeypatch, probe("fixed", [], reversible=False))
    handle = put_on(pipe, plan, case)
    with pytest.raises(UsageError, match="fixed cannot be taken off") as caught:
        handle.remove()
    assert caught.value.value == "fixed" and "anew" in caught.value.way_out
    monkeypatch.setattr(registry, "get", {"fixed": probe("fixed", [])}.__getitem__)
    handle.remove()
    assert handle_of(pipe) is None


def test_statistics_are_those_of_the_last_call(
    pipe: Any, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(pipeline: Any, settings: Any, context: Context) -> Callable[[], None]:
        forget = context.clock.on_reset(context.statistics.clear)

        def forward(module: Any, args: Any, output: Any) -> None:
            context.statistics["forwards"] = int(context.statistics.get("forwards") or 0) + 1

        hook = pipeline.transformer.register_forward_hook(forward)
        return lambda: (hook.remove(), forget())[1]

    def few(settings: Any, statistics: dict[str, Any], workload: Any) -> str | None:
        return "only a few forwards" if statistics["forwards"] < 6 else None

    plan = plan_of(monkeypatch, probe("count", [], apply=count, observe=few))
    with put_on(pipe, plan, case) as handle:
        for _ in range(2):
            draw(pipe)
            assert handle.stats == {"count": {"forwards": 6}} and handle.complaints() == {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LeavesCaseWarning)
            draw(pipe, num_inference_steps=2)
        assert handle.complaints() == {"count": "only a few forwards"}


def test_embeddings_take_the_place_of_a_default_text(pipe: Any, case: Case) -> None:
    import torch

    with torch.no_grad():
        embeds, pooled, _ = pipe.encode_prompt("a blue star", None, max_sequence_length=8)
    given = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    negative = {f"negative_{name}": value for name, value in given.items()}
    with put_on(pipe, BASELINE, case), pytest.warns(LeavesCaseWarning, match="negative_"):
        images = draw(pipe, None, **given, **negative)
    assert images.shape == (1, 64, 64, 3)


def test_a_default_negative_prompt_is_repeated_for_a_list_of_prompts(pipe: Any) -> None:
    case = tiny_case(pipe, num_inference_steps=2)
    case = case.model_copy(update={"workload": case.workload.model_copy(update={"batch_size": 2})})
    texts = ["a red circle", "a blue star"]
    assert reference_call(case.workload, texts)["negative_prompt"] == ["", ""]
    with put_on(pipe, BASELINE, case) as handle:
        assert draw(pipe, texts).shape == (2, 64, 64, 3)
        draw(pipe, texts, negative_prompt=["", ""])
        assert handle.certified
