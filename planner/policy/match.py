"""Holds a policy against a live pipeline: what must fit, and what it was certified under."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

from planner.case.case import Case
from planner.case.device import Device
from planner.case.model import Component, Model
from planner.case.noun import Noun
from planner.case.workload import Workload
from planner.passes import registry
from planner.policy.file import PolicyFile
from planner.units import format_bytes


class Differences(Noun):
    """Sentences on how a pipeline and its device differ from a policy's case.

    Any in `must` refuses the policy; those in `envelope` leave it usable, but not certified.
    """

    must: tuple[str, ...] = ()
    envelope: tuple[str, ...] = ()


def differences(policy: PolicyFile, case: Case) -> Differences:
    """Compare a policy with a live case; every sentence names both values, the policy's first.

    A predicted policy was made without weights, tokenizers and a device: of these it asks nothing.
    """
    if policy.status == "predicted":
        return _of_a_prediction(policy, case)
    return Differences(
        must=(
            *_model(policy.case.model, case.model),
            *_capability(policy.case.device, case.device),
            *_needs(policy, case),
            *_libraries(policy),
        ),
        envelope=(
            *_device(policy.case.device, case.device),
            *_memory(policy, case.device),
            *_workload(policy.case.workload, case.workload),
        ),
    )


def _of_a_prediction(policy: PolicyFile, case: Case) -> Differences:
    """Compare what a prediction knows: classes and configs, without weights and tokenizers."""
    theirs, ours = policy.case.model, case.model
    pairs = [(name, part, ours.components.get(name)) for name, part in theirs.components.items()]
    device, here = policy.case.device.name, case.device.name
    call = _workload(policy.case.workload, case.workload, "predicted")
    return Differences(
        must=(
            *_pipeline(theirs, ours),
            *filter(None, (_kind(*pair) for pair in pairs)),
            *_capability(policy.case.device, case.device),
            *_needs(policy, case),
            *_libraries(policy),
            *_unlearned(policy),
        ),
        envelope=(
            "nothing of it was measured",
            *filter(None, (_config(*pair) for pair in pairs)),
            *([f"predicted for {device}; this is {here}"] if device != here else ()),
            *_memory(policy, case.device),
            *call,
        ),
    )


def _unlearned(policy: PolicyFile) -> Iterator[str]:
    """Name the passes that cannot do without what a calibration on weights finds."""
    for entry in policy.plan:
        if entry.artifact is None and registry.learns(entry.name, entry.settings):
            yield f"{entry.name} needs what only `planner tune` finds on these weights"


def _model(policy: Model, live: Model) -> Iterator[str]:
    yield from _pipeline(policy, live)
    for name in sorted(policy.components.keys() | live.components.keys()):
        pair = policy.components.get(name), live.components.get(name)
        found = _kind(name, *pair) or _config(name, *pair) or _weights(name, *pair)
        if found:
            yield found


def _pipeline(policy: Model, live: Model) -> Iterator[str]:
    if policy.pipeline != live.pipeline:
        yield f"the policy is for a {policy.pipeline}; this is a {live.pipeline}"
    if policy.adapters != live.adapters:
        with_, here = _listed(policy.adapters), _listed(live.adapters)
        yield f"the policy is for adapters {with_}; the pipeline has {here}"


def _kind(name: str, policy: Component | None, live: Component | None) -> str | None:
    if policy is None or live is None:
        has, lacks = ("the pipeline", "the policy's") if policy is None else (
            "the policy's pipeline", "this one")  # fmt: skip
        kind = (policy or live or Component(class_name="", config="")).class_name
        return f"{has} has a component {name} ({kind}); {lacks} has none"
    if policy.class_name == live.class_name:
        return None
    return f"{name} is a {policy.class_name} in the policy and a {live.class_name} here"


def _config(name: str, policy: Component | None, live: Component | None) -> str | None:
    if policy is None or live is None or policy.config == live.config:
        return None
    return f"{name} has config {policy.config[:12]} in the policy and {live.config[:12]} here"


def _weights(name: str, policy: Component | None, live: Component | None) -> str | None:
    if policy is None or live is None or policy.weights == live.weights:
        return None
    theirs, ours = _hash(policy.weights), _hash(live.weights)
    return (
        f"{name} has weights {theirs} in the policy and {ours} here: a fine-tune, or another "
        "precision"
    )


def _capability(policy: Device, live: Device) -> Iterator[str]:
    if policy.kind != live.kind:
        yield f"the policy is for {policy.kind}; the pipeline is on {live.kind}"
    elif policy.capability != live.capability:
        yield f"the policy is for capability {_version(policy.capability)}; " \
              f"this device has {_version(live.capability)}"  # fmt: skip


def _needs(policy: PolicyFile, case: Case) -> Iterator[str]:
    """Ask each pass what it misses here, such as an instruction set or a registered block."""
    for entry in policy.plan:
        yield from registry.get(entry.name).missing(case)


def _libraries(policy: PolicyFile) -> Iterator[str]:
    for entry in policy.plan:
        for line in registry.get(entry.name).imports:
            wanted = Requirement(line)
            try:
                found = metadata.version(wanted.name)
            except metadata.PackageNotFoundError:
                yield f"{entry.name} needs {line}; no {wanted.name} is installed"
                continue
            if not wanted.specifier.contains(found, prereleases=True):
                yield f"{entry.name} needs {line}; {wanted.name} {found} is installed"


def _device(policy: Device, live: Device) -> Iterator[str]:
    pairs = {
        "on {}": (policy.name, live.name),
        "with driver {}": (policy.driver or "none", live.driver or "none"),
        "with {} threads (torch.set_num_threads)": (policy.threads, live.threads),
        "with instruction sets {}": (_listed(policy.features), _listed(live.features)),
    }
    for words, (theirs, ours) in pairs.items():
        if theirs != ours:
            yield f"measured {words.format(theirs)}; here {ours}"
    for name in sorted(policy.libraries.keys() | live.libraries.keys()):
        theirs, ours = policy.libraries.get(name, "absent"), live.libraries.get(name, "absent")
        if theirs != ours:
            yield f"measured with {name} {theirs}; here {ours}"


def _memory(policy: PolicyFile, live: Device) -> Iterator[str]:
    """Compare the measured peak with this device; how much lies idle above it says nothing."""
    known = policy.evidence or policy.prediction
    peak = known.memory_tuned.value if known else 0
    if live.memory_bytes < peak:
        how = "measured" if policy.evidence else "predicted"
        yield f"{how} with a peak of {format_bytes(peak)}; " \
              f"this device has {format_bytes(live.memory_bytes)}"  # fmt: skip


def _workload(policy: Workload, live: Workload, how: str = "measured") -> Iterator[str]:
    pairs = {
        "dtype": (policy.dtype, live.dtype),
        "batch size": (policy.batch_size, live.batch_size),
        "guidance": (policy.guidance, live.guidance),
    } | {
        key: (policy.call.get(key, "unset"), live.call.get(key, "unset"))
        for key in sorted(policy.call.keys() | live.call.keys())
    }  # fmt: skip
    for name, (theirs, ours) in pairs.items():
        if theirs != ours:
            yield f"{how} with {name} {theirs!r}; here {ours!r}"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"


def _hash(text: str | None) -> str:
    return "none" if text is None else text[:12]


def _version(capability: tuple[int, int] | None) -> str:
    return "none" if capability is None else f"{capability[0]}.{capability[1]}"
