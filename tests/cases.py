"""Cases and passes made by hand: what the graph judges, without loading a pipeline."""

from typing import Any

from planner.case.case import Case
from planner.case.device import Device
from planner.case.model import Model, Traits
from planner.case.work import Work
from planner.case.workload import Workload
from planner.passes.base import Family, Fidelity, Pass, Settings, Stage, knob

TRAITS = Traits(
    denoiser="transformer",
    denoiser_class="FluxTransformer2DModel",
    block_classes=("FluxTransformerBlock", "FluxSingleTransformerBlock"),
    blocks=12,
    cacheable=True,
    skippable=True,
    attention=("spatial",),
    compilable=True,
    branches=("cond", "uncond"),
    prompt_arguments=("prompt", "prompt_2", "device"),
)


def flux_case(*, guidance: str = "sequential", traits: Traits = TRAITS, **call: Any) -> Case:
    """Return the case of a Flux of 12 blocks on a CPU: 50 steps with true CFG."""
    arguments = {
        "height": 128, "width": 128, "num_inference_steps": 50, "true_cfg_scale": 4.0,
        "negative_prompt": "", "max_sequence_length": 32,
    }  # fmt: skip
    return Case(
        model=Model(id="flux", pipeline="FluxPipeline", components={}, traits=traits),
        device=Device(
            kind="cpu", name="a cpu", memory_bytes=2**33,
            features=("avx2", "avx512_vnni", "int8:fbgemm"),
        ),
        workload=Workload.model_validate(
            {"call": arguments | call, "guidance": guidance, "prompts": "0" * 64}
        ),
    )


class Amount(Settings):
    """One setting for passes made by hand."""

    amount: float = knob(0.1, "how much", low=0.0, high=1.0, least=0.0, most=1.0)


def same(work: Work, settings: Any, telemetry: Any) -> Work:
    """Return the work as it is."""
    del settings, telemetry
    return work


def a_pass(name: str, stage: Stage = Stage.CACHE, **fields: Any) -> Pass:
    """Return a pass that does nothing, with the fields that a test is about."""
    defaults: dict[str, Any] = {
        "family": Family.CACHING, "fidelity": Fidelity.APPROXIMATE, "source": "a test",
        "settings": Amount, "effect": same, "batch_invariant": True,
    }  # fmt: skip
    return Pass(name=name, stage=stage, **defaults | fields)
