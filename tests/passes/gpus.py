"""Cases and work that are only declared: a pipeline on a GPU, with weights of round sizes."""

from typing import Any

from planner.case.case import Case
from planner.case.device import Device
from planner.case.work import Operation, Part, Phase, Work
from tests.passes.driving import H100, shared_bench


def on_gpu(device: Device = H100, dtype: str = "bfloat16", **call: Any) -> Case:
    """Return the shared bench's case as it would be on a GPU, with changed call arguments."""
    case = shared_bench().case
    workload = case.workload.model_copy(
        update={"dtype": dtype, "call": case.workload.call | call}
    )
    return case.model_copy(update={"device": device, "workload": workload})


def gpu(capability: tuple[int, int], **libraries: str) -> Device:
    """Return a GPU of some capability, with these libraries (names with _ for -)."""
    named = {name.replace("_", "-"): text for name, text in libraries.items()}
    return H100.model_copy(update={"capability": capability, "libraries": named})


def linear(path: str, weights: float, block: bool = True, share: float = 1.0) -> Operation:
    """Return a product in bfloat16 that reads its weights and as many bytes again."""
    return Operation(path=path, kind="linear", flops=1e6, bytes=2 * weights, weights=weights,
                     dtype="bfloat16", block=block, share=share)  # fmt: skip


def heavy_work(share: float = 1.0) -> Work:
    """Return four blocks of 100 bytes and 100 outside them, an encoder of 300, a VAE of 50."""
    stack = tuple(linear(f"blocks.{index}.attn", 100.0, share=share) for index in range(4))
    denoise = (*stack, linear("norm_out", 100.0, block=False))
    attention = Operation(
        path="blocks.0.attn", kind="attention", flops=1e6, bytes=1e3, dtype="bfloat16", block=True
    )
    return Work(
        phases=(
            Phase(name="encode", calls=2, operations=()),
            Phase(name="denoise", branch="cond", calls=10, operations=(*denoise, attention)),
            Phase(name="denoise", branch="uncond", calls=10, operations=(*denoise, attention)),
            Phase(name="decode", calls=1, operations=(attention,), peak=1000.0),
        ),
        parts=(
            Part(name="text_encoder", phase="encode", parameters=150, bytes=300),
            Part(name="transformer", phase="denoise", parameters=250, bytes=500),
            Part(name="vae", phase="decode", parameters=25, bytes=50),
        ),
    )
