"""Matching: each difference between a policy's case and a live one is a sentence in its tier."""

from typing import Any

import pytest

from planner.case.case import Case
from planner.case.model import Component
from planner.passes import registry
from planner.plans.plan import Plan
from planner.policy.match import differences
from tests.policies import a_case, a_policy

POLICY = a_policy()


def changed(room: str, **changes: Any) -> Case:
    """Return the policy's own case with one thing different."""
    case = a_case()
    noun = getattr(case, room).model_copy(update=changes)
    return case.model_copy(update={room: noun})


def with_component(name: str, component: Component | None) -> Case:
    parts = {**a_case().model.components, name: component}
    return changed("model", components={k: v for k, v in parts.items() if v is not None})


TRANSFORMER = a_case().model.components["transformer"]

MUST = {
    "pipeline class": (changed("model", pipeline="SanaPipeline"), ("FluxPipeline", "SanaPipeline")),
    "adapters": (changed("model", adapters=("transformer:style",)), ("none", "transformer:style")),
    "missing component": (with_component("scheduler", None), ("scheduler", "this one has none")),
    "added component": (with_component("vae", TRANSFORMER), ("vae", "the policy's has none")),
    "component class": (
        with_component("transformer", TRANSFORMER.model_copy(update={"class_name": "Other"})),
        ("Flux", "Other"),
    ),
    "config": (
        with_component("transformer", TRANSFORMER.model_copy(update={"config": "9" * 64})),
        ("b" * 12, "9" * 12),
    ),
    "weights": (
        with_component("transformer", TRANSFORMER.model_copy(update={"weights": "9" * 64})),
        ("1" * 12, "9" * 12),
    ),
    "no weights": (
        with_component("transformer", TRANSFORMER.model_copy(update={"weights": None})),
        ("1" * 12, "none"),
    ),
    "kind of device": (changed("device", kind="cuda", capability=(9, 0)), ("cpu", "cuda")),
    "capability": (changed("device", capability=(9, 0)), ("none", "9.0")),
}  # fmt: skip

ENVELOPE = {
    "device name": (changed("device", name="AMD EPYC"), ("Xeon", "AMD EPYC")),
    "driver": (changed("device", driver="580.1"), ("none", "580.1")),
    "threads": (changed("device", threads=8), ("2", "8")),
    "instruction sets": (changed("device", features=("avx2",)), ("avx512_vnni", "avx2")),
    "library": (changed("device", libraries={"torch": "2.15.0", "diffusers": "0.42.1"}),
                ("torch 2.14.1", "2.15.0")),
    "library gone": (changed("device", libraries={"torch": "2.14.1"}), ("0.42.1", "absent")),
    "dtype": (changed("workload", dtype="bfloat16"), ("float32", "bfloat16")),
    "batch": (changed("workload", batch_size=4), ("1", "4")),
    "guidance": (changed("workload", guidance="none"), ("sequential", "none")),
    "call": (changed("workload", call=a_case().workload.call | {"height": 256}), ("128", "256")),
    "argument unset": (changed("workload", call={}), ("128", "unset")),
}  # fmt: skip


def test_a_policys_own_case_differs_in_nothing() -> None:
    found = differences(POLICY, a_case())
    assert found.must == () and found.envelope == ()


@pytest.mark.parametrize("name", MUST)
def test_what_must_fit_is_named_with_both_values(name: str) -> None:
    case, values = MUST[name]
    found = differences(POLICY, case)
    assert len(found.must) == 1 and found.envelope == ()
    assert all(value in found.must[0] for value in values), found.must[0]


@pytest.mark.parametrize("name", ENVELOPE)
def test_what_leaves_the_envelope_is_named_with_both_values(name: str) -> None:
    case, values = ENVELOPE[name]
    found = differences(POLICY, case)
    assert found.must == ()
    assert all(any(value in said for said in found.envelope) for value in values), found.envelope


def test_all_differences_are_named_at_once() -> None:
    model = a_case().model.model_copy(update={"pipeline": "SanaPipeline", "adapters": ("a:b",)})
    found = differences(POLICY, a_case().model_copy(update={"model": model}))
    assert len(found.must) == 2


def test_labels_commits_and_the_size_of_memory_do_not_matter() -> None:
    assert differences(POLICY, changed("model", id="other", revision="f" * 40)).must == ()
    assert differences(POLICY, changed("device", memory_bytes=4 << 30)).envelope == ()


def test_a_device_with_less_memory_than_the_peak_is_outside() -> None:
    found = differences(POLICY, changed("device", memory_bytes=512 << 20))
    assert found.envelope == ("measured with a peak of 1GiB; this device has 512MiB",)


def test_what_a_pass_misses_here_is_said_in_its_own_words() -> None:
    traits = a_case().model.traits.model_copy(update={"block_classes": (), "blocks": 0,
                                                      "skippable": False})  # fmt: skip
    live = changed("model", traits=traits)
    (sentence,) = registry.get("tea_cache").missing(live)
    assert sentence in differences(POLICY, live).must


def test_a_library_that_a_pass_needs_is_checked_with_its_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dataclasses import replace

    steps = replace(registry.get("steps"), imports=("diffusers>=99", "no-such-library>=1"))
    monkeypatch.setattr(registry, "get", lambda name: steps)
    found = differences(a_policy(plan=Plan.of({"steps": {}}), artifacts={}), a_case())
    assert len(found.must) == 2
    assert "steps needs diffusers>=99; diffusers 0." in found.must[0]
    assert found.must[1] == "steps needs no-such-library>=1; no no-such-library is installed"
