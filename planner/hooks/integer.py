"""INT8 kernels for a linear layer, one of them chosen by what the installation can do.

On the CPU torch's packed FBGEMM kernel comes first: it shares torch's threads and needs no other
library. torch announces that its quantized tensors go away; ONNX Runtime, measured equally fast
and somewhat more exact, is the way on. On CUDA it is torchao.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from types import MethodType
from typing import Any
from weakref import WeakValueDictionary

from planner.errors import UsageError
from planner.hooks.linear import torchao_weight

WEIGHT_LIMIT = 63
"""Weights have 7 bits: without VNNI, two products of 8×8 bit are summed in a saturating 16 bits."""


def engine_for(device: str, wanted: str = "auto") -> str:
    """Return the kernel for a device type: fbgemm, onnxruntime or torchao.

    Raises `UsageError` for a wish that this device or installation cannot fulfil.
    """
    possible = ["torchao"] if device == "cuda" else list(cpu_engines())
    if wanted == "auto" and possible:
        return possible[0]
    if wanted in possible:
        return wanted
    found = ", ".join(possible) or "no INT8 kernel"
    raise UsageError(f"int8_dynamic cannot use {wanted!r} on {device}", value=wanted,
                     way_out=f"this installation has {found}")  # fmt: skip


def cpu_engines() -> Iterator[str]:
    """Yield the INT8 kernels that this installation has for the CPU, the preferred one first."""
    from importlib.util import find_spec

    import torch

    packed = {"x86", "fbgemm"} & set(torch.backends.quantized.supported_engines)
    if packed and hasattr(torch.ops.quantized, "linear_dynamic"):
        yield "fbgemm"
    if find_spec("onnxruntime") and find_spec("onnx"):
        yield "onnxruntime"


def integer_linear(layer: Any, engine: str) -> dict[str, Any]:
    """Return the instance attributes that make a linear layer compute in INT8.

    Either a `weight` (torchao's tensor subclass), or a `forward` with what it needs.
    """
    if engine == "torchao":
        return {"weight": _torchao(layer)}
    kernel = Kernel({"fbgemm": _fbgemm, "onnxruntime": _onnxruntime}[engine](layer))
    return {
        "forward": MethodType(_forward, layer),
        "_planner_kernel": kernel,
        "_planner_handle": kernel.handle,
    }


class Kernel:
    """A packed layer as a function, and a tensor that stands for it inside compiled code.

    Compiled blocks see one opaque operator and a tensor that differs from block to block, so that
    one graph serves all blocks; a packed object of torch's would break the graph at every layer.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        import torch

        _define_operator()
        self.function = function
        self.number = next(_NUMBERS)
        self.handle = torch.tensor(self.number)
        _KERNELS[self.number] = self


_NUMBERS = count()
_KERNELS: WeakValueDictionary[int, Kernel] = WeakValueDictionary()


def _forward(layer: Any, x: Any) -> Any:
    import torch

    if torch.compiler.is_compiling():
        return torch.ops.planner.int8_linear(x, layer._planner_handle, layer.out_features)
    return layer._planner_kernel.function(x)


@cache
def _define_operator() -> Any:
    import torch

    make: Any = torch.library.Library
    library = make("planner", "DEF")
    library.define("int8_linear(Tensor x, Tensor handle, int features) -> Tensor")
    library.impl("int8_linear", _run_by_handle, "CPU")
    library.impl("int8_linear", _shape_alone, "Meta")
    return library


def _run_by_handle(x: Any, handle: Any, features: int) -> Any:
    return _KERNELS[int(handle)].function(x)


def _shape_alone(x: Any, handle: Any, features: int) -> Any:
    return x.new_empty((*x.shape[:-1], features))


def _fbgemm(layer: Any) -> Callable[[Any], Any]:
    import torch

    weight = layer.weight.detach()
    scale = weight.abs().amax(1).clamp(min=1e-8).double() / WEIGHT_LIMIT
    zero = torch.zeros(len(scale), dtype=torch.int64)
    with warnings.catch_warnings():
        # torch announces that quantized tensors go away; `_onnxruntime` is the way on.
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor", append=False)
        quantized = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(quantized, layer.bias)

    def forward(x: Any) -> Any:
        # Not reduce_range: 7-bit activations would double the error of 7-bit weights.
        return torch.ops.quantized.linear_dynamic(x, packed, False)

    return forward


def _onnxruntime(layer: Any) -> Callable[[Any], Any]:
    import numpy as np
    import onnxruntime
    import torch
    from onnx import helper, numpy_helper

    weight = layer.weight.detach()
    scale = weight.abs().amax(1).clamp(min=1e-8) / WEIGHT_LIMIT
    integers = (weight / scale[:, None]).round().to(torch.int8)
    bias = torch.zeros(len(scale)) if layer.bias is None else layer.bias.detach()
    constants = {"w": integers.t().contiguous().numpy(), "s": scale.numpy(), "b": bias.numpy()}
    steps = (
        ("DynamicQuantizeLinear", "x", "xi xs xz"), ("MatMulInteger", "xi w xz", "yi"),
        ("Cast", "yi", "yf"), ("Mul", "xs s", "ss"), ("Mul", "yf ss", "ym"), ("Add", "ym b", "y"),
    )  # fmt: skip
    nodes = [
        helper.make_node(kind, ins.split(), outs.split(), **({"to": 1} if kind == "Cast" else {}))
        for kind, ins, outs in steps
    ]
    inputs = [helper.make_tensor_value_info("x", 1, ["m", layer.in_features])]
    outputs = [helper.make_tensor_value_info("y", 1, ["m", layer.out_features])]
    held = [numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "int8_linear", inputs, outputs, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def forward(x: Any) -> Any:
        rows = x.detach().reshape(-1, x.shape[-1]).numpy()
        return torch.from_numpy(session.run(None, {"x": rows})[0]).view(*x.shape[:-1], -1)

    return forward


def _torchao(layer: Any) -> Any:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    # Its inductor flags are the whole process's: undo could not take them back.
    return torchao_weight(Int8DynamicActivationInt8WeightConfig(set_inductor_config=False), layer)
