"""The linear layers of the denoisers' blocks: which are in scope, other weights for them, and back.

Shared by the passes that store or multiply weights in a narrower format.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, Protocol

from planner.hooks.blocks import denoisers_of, segments

SENSITIVE = ("norm", "adaln", "modulation", "img_mod", "txt_mod", "embed")
"""Parts of a path that lead to conditioning: few rows, large outliers."""

Layers = list[tuple[str, Any]]
"""Linear layers by their path inside the pipeline, such as transformer.blocks.0.attn1.to_q."""


class Choice(Protocol):
    """Settings that say which layers: a scope, and how many blocks at each end are left alone."""

    @property
    def scope(self) -> str:
        """Return blocks, attention or feed_forward."""
        ...

    @property
    def edges(self) -> int:
        """Return how many blocks at each end of the stack keep their precision."""
        ...


def in_scope(path: str, scope: str) -> bool:
    """Tell whether a linear layer at this path inside its block is in scope."""
    parts = path.lower().split(".")
    if any(word in part for part in parts for word in SENSITIVE):
        return False
    attention = any("attn" in part for part in parts)
    return scope == "blocks" or attention == (scope == "attention")


def layers(
    pipeline: Any, choice: Choice, fits: Callable[[Any], bool] = lambda layer: True
) -> tuple[Layers, list[str]]:
    """Return the linear layers to quantize by path, and the paths of those left alone.

    Of two experts both are meant, each with its own edges. A weight that is more than a plain
    parameter is some other library's, and stays.
    """
    found: Layers = []
    left: list[str] = []
    for name, denoiser in denoisers_of(pipeline).items():
        chosen, others = _inside(denoiser, choice, fits)
        found += [(f"{name}.{path}", layer) for path, layer in chosen]
        left += [f"{name}.{path}" for path in others]
    return found, left


def _inside(
    denoiser: Any, choice: Choice, fits: Callable[[Any], bool]
) -> tuple[Layers, list[str]]:
    """Return the layers of one denoiser by their path in it, and the paths of the others."""
    import torch

    stack = [
        (f"{part.name}.{index}", block)
        for part in segments(denoiser)
        for index, block in enumerate(part.blocks)
    ]
    kept = stack[choice.edges : len(stack) - choice.edges]
    found = [
        (f"{place}.{path}", layer)
        for place, block in kept
        for path, layer in block.named_modules()
        if isinstance(layer, torch.nn.Linear) and in_scope(path, choice.scope)
        and type(layer.weight) is torch.nn.Parameter and fits(layer)
    ]
    names = {path for path, _ in found}
    linear = (p for p, m in denoiser.named_modules() if isinstance(m, torch.nn.Linear))
    return found, [path for path in linear if path not in names]


def none_quantized(name: str, choice: Choice, layers: object) -> str | None:
    """Answer a sentence if a pass quantized none of the layers that were chosen."""
    if layers:
        return None
    return f"{name} quantized no layer at scope {choice.scope}, edges {choice.edges}"


def torchao_weight(config: Any, layer: Any) -> Any:
    """Return the weight that torchao gives a layer under a configuration; the layer stays."""
    import torch
    from torchao.quantization import quantize_

    copy = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    copy.weight = torch.nn.Parameter(layer.weight.detach(), requires_grad=False)
    holder = torch.nn.Sequential(copy)
    quantize_(holder, config)
    return holder[0].weight


def swap_weights(found: Layers, new: Callable[[Any], Any]) -> Callable[[], None]:
    """Give every layer the weight that `new` makes of it; returns the undo.

    The layer's own weight is the same parameter afterwards. In between it waits in the host's
    memory, so that a GPU holds one copy of each weight; on a CPU both copies stay.
    """
    with ExitStack() as stack:
        for _, layer in found:
            own = layer.weight
            layer.weight = new(layer)
            stack.callback(partial(_bring_back, layer, own))
            own.data = own.data.to("cpu")
        return stack.pop_all().close


def swap_modules(pipeline: Any, found: Layers, new: Callable[[Any], Any]) -> Callable[[], None]:
    """Put the module that `new` makes of a layer in its place; returns the undo, as above."""
    with ExitStack() as stack:
        for path, layer in found:
            parent, _, name = path.rpartition(".")
            component, _, inside = parent.partition(".")
            place = denoisers_of(pipeline)[component].get_submodule(inside)
            setattr(place, name, new(layer))
            stack.callback(_put_back, place, name, layer)
            layer.weight.data = layer.weight.data.to("cpu")
        return stack.pop_all().close


def _bring_back(layer: Any, own: Any) -> None:
    """Return a layer's own weight to where its quantized one is now."""
    own.data = own.data.to(layer.weight.device)
    layer.weight = own


def _put_back(place: Any, name: str, layer: Any) -> None:
    """Return a layer to its parent, and its weight to where the stand-in's is now."""
    layer.weight.data = layer.weight.data.to(getattr(place, name).weight.device)
    setattr(place, name, layer)
