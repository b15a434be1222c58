"""What tests of number formats share: declared GPUs, known weights, stored bytes, kernels."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from planner.case.case import Case
from planner.case.device import Device
from planner.case.work import Part, Work
from tests.passes.driving import Bench


def on_gpu(
    case: Case, capability: tuple[int, int] = (10, 0), dtype: str = "bfloat16", cuda: str = "13.0"
) -> Case:
    """The same case on a declared GPU, computing in 16 bits."""
    device = Device(
        kind="cuda", name="a GPU", capability=capability, memory_bytes=2**37,
        libraries={"cuda": cuda},
    )  # fmt: skip
    workload = case.workload.model_copy(update={"dtype": dtype})
    return case.model_copy(update={"device": device, "workload": workload})


def weighed(bench: Bench) -> Work:
    """The bench's work, with the parameters of every linear module and of the denoiser known."""
    denoiser = bench.pipe.transformer
    total = sum(parameter.nbytes for parameter in denoiser.parameters())

    def weight(path: str) -> float:
        inside = denoiser.get_submodule(path).modules()
        return float(sum(m.weight.nbytes for m in inside if isinstance(m, torch.nn.Linear)))

    def phase_of(phase: Any) -> Any:
        operations = tuple(
            op.model_copy(update={"weights": weight(op.path)})
            if phase.name == "denoise" and op.kind == "linear" and op.block else op
            for op in phase.operations
        )  # fmt: skip
        return phase.model_copy(update={"operations": operations})

    part = Part(name="transformer", phase="denoise", parameters=total / 4, bytes=total)
    return bench.work.mapped(phase_of).model_copy(update={"parts": (part,)})


def stored(bench: Bench) -> int:
    """Bytes of all that the denoiser holds now, scales of quantized weights included."""
    return sum(held(parameter) for parameter in bench.pipe.transformer.parameters())


def held(weight: Any) -> int:
    """Bytes of one parameter, which may be several tensors."""
    names = getattr(weight, "tensor_data_names", None)
    if names is None:
        return int(weight.numel() * weight.element_size())
    inside = [getattr(weight, name) for name in (*names, "zero_point", "per_tensor_scale")
              if isinstance(getattr(weight, name, None), torch.Tensor)]  # fmt: skip
    return sum(tensor.nbytes for tensor in inside)


class Counted(TorchDispatchMode):
    """Counts kernels, what they read and write, and the work of products in FP8."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.bytes, self.products = 0, 0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        if returns and all(r.alias_info and not r.alias_info.is_write for r in returns):
            return out
        tensors = [one for one in tree_leaves((args, kwargs, out)) if isinstance(one, torch.Tensor)]
        self.kernels += 1
        self.bytes += sum(one.numel() * one.element_size() for one in tensors)
        if func._schema.name == "aten::_scaled_mm":
            self.products += 2.0 * args[0].numel() * args[1].shape[1]
        return out
