"""A pipeline that waits on the host: passes bring their part of it in, the rest goes as a whole."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from planner.errors import PlannerError, PolicyDoesNotFit
from planner.hooks.residence import settled
from planner.plans.plan import Plan
from planner.policy.file import write_policy
from planner.policy.runtime import load
from planner.run.apply import put_on
from tests.passes.driving import H100, leftovers, shared_bench
from tests.policies import a_predicted_policy
from tests.tiny import tiny_case, tiny_flux


class Moved(torch.nn.Linear):
    """A layer that remembers where it was sent; one that is broken stops half way."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__(2, 2)
        self.sent: list[str] = []
        self.broken = broken

    def to(self, *args: Any, **kwargs: Any) -> Any:
        self.sent.append(str(args[0]))
        if self.broken and self.sent == ["cuda"]:
            raise RuntimeError("out of memory")
        return self


def test_what_no_pass_moves_goes_to_the_device_and_comes_back() -> None:
    plain, moved = Moved(), Moved()
    moved._hf_hook = object()  # type: ignore[assignment]
    bare = torch.nn.Identity()
    parts = {"vae": plain, "transformer": moved, "tokenizer": "words", "checker": bare}
    undo = settled(SimpleNamespace(components=parts), "cuda")
    assert plain.sent == ["cuda"] and moved.sent == []
    undo()
    assert plain.sent == ["cuda", "cpu"]


def test_where_one_does_not_fit_the_others_are_back_where_they_were() -> None:
    first, broken = Moved(), Moved(broken=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        settled(SimpleNamespace(components={"vae": first, "transformer": broken}), "cuda")
    assert first.sent == broken.sent == ["cuda", "cpu"]


@pytest.mark.parametrize("name", ["group_offload", "text_encoder_offload"])
def test_groups_are_made_for_the_device_and_not_for_where_they_rest(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[Any] = []

    def remember(model: Any, onload_device: Any, **kwargs: Any) -> None:
        wanted.append(onload_device)
        raise RuntimeError("no such device here")

    monkeypatch.setattr("diffusers.hooks.apply_group_offloading", remember)
    monkeypatch.setattr("torch.Tensor.pin_memory", lambda tensor: tensor)
    bench = shared_bench()
    case = bench.case.model_copy(update={"device": H100})
    with pytest.raises(PlannerError, match="no such device here"):
        put_on(bench.pipe, Plan.of({name: {}}), case, device="cuda")
    assert wanted == [torch.device("cuda")] and leftovers(bench.pipe) == []


def test_turns_are_taken_on_the_device_and_not_where_the_denoiser_rests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench, wanted = shared_bench(), []
    monkeypatch.setattr(
        type(bench.pipe), "enable_model_cpu_offload", lambda pipe, device: wanted.append(device)
    )
    case = bench.case.model_copy(update={"device": H100})
    with pytest.raises(PlannerError):  # accelerate's hooks are not there to be counted
        put_on(bench.pipe, Plan.of({"model_offload": {}}), case, device="cuda")
    assert wanted == ["cuda"] and leftovers(bench.pipe) == []


def test_a_policy_brings_a_pipeline_in_only_where_its_passes_move_weights(tmp_path: Path) -> None:
    pipe, path = tiny_flux(), tmp_path / "12gib.yaml"
    case = tiny_case(pipe).model_copy(update={"device": H100})
    write_policy(a_predicted_policy(plan=Plan(), artifacts={}, case=case), path)
    with pytest.raises(PolicyDoesNotFit, match="the policy is for cuda; the pipeline is on cpu"):
        load(path, allow=("predicted",)).apply(pipe)
    plan = Plan.of({"group_offload": {}})
    write_policy(a_predicted_policy(plan=plan, artifacts={}, case=case), path)
    policy = load(path, allow=("predicted",))
    assert policy.source("somewhere").device == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(PlannerError, match="cuda"):
            policy.apply(pipe)
