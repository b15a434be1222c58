"""What the meta device must be helped with: fused attention, and code that looks at its data.

Without help, scaled dot-product attention falls apart there into matrices of scores that no
attention kernel keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors


class OnMeta(TorchFunctionMode):
    """Replaces a few functions by ones that only make shapes.

    `patched` may name: nonzero (every entry is taken to be non-zero) and masks (every token that a
    boolean mask chooses from is kept, none of those that its negation chooses; a comparison of
    everything with zero is false). Nothing else that looks at data is let through.
    """

    def __init__(self, patched: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._makers = _device_constructors()
        self._instead: dict[Any, Callable[..., Any]] = {
            torch.nn.functional.scaled_dot_product_attention: _attention
        }
        if "nonzero" in patched:
            self._instead[torch.nonzero] = _every_index
        if "masks" in patched:
            self._instead |= {
                torch.Tensor.__invert__: _negated, torch.Tensor.__getitem__: _chosen,
                torch.Tensor.__bool__: lambda tensor: False,
            }  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._makers and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return self._instead.get(func, func)(*args, **kwargs)


@contextmanager
def on_meta(patched: tuple[str, ...] = ()) -> Iterator[None]:
    """Run on the meta device what can be run there, and no more, while the block lasts."""
    with ExitStack() as stack:
        if "autocast" in patched:  # torch refuses it for this device
            quiet = patch.object(torch, "autocast", lambda *_, **__: nullcontext())
            stack.enter_context(quiet)
        if "causal_mask" in patched:
            stack.enter_context(_whole_masks())
        stack.enter_context(OnMeta(patched))
        yield


def _whole_masks() -> Any:
    """Let the VAE of HunyuanVideo-1.5 make its mask at once.

    It writes one row after the other: tens of thousands of launches, which are left out.
    """
    from diffusers.models.autoencoders.autoencoder_kl_hunyuanvideo15 import HunyuanVideo15AttnBlock

    def mask(n_frame: int, n_hw: int, dtype: Any, device: Any, batch_size: int = 1) -> Any:
        side = n_frame * n_hw
        full = torch.full((side, side), float("-inf"), dtype=dtype, device=device)
        return full.unsqueeze(0).expand(batch_size, -1, -1)

    name = "prepare_causal_attention_mask"
    return patch.object(HunyuanVideo15AttnBlock, name, staticmethod(mask))


def _attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """Attention as one kernel: reads queries, keys, values and mask, writes its output."""
    del dropout_p, scale, enable_gqa
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention.default
    folded = query.dim() == 3
    if folded:
        query, key, value = (tensor.unsqueeze(1) for tensor in (query, key, value))
    out = kernel(query, key, value, attn_mask, False, 0.0, is_causal)[0]
    return out.squeeze(1) if folded else out


def _every_index(tensor: Any, *, as_tuple: bool = False) -> Any:
    del as_tuple
    return torch.arange(tensor.numel(), device="meta").unsqueeze(1)


def _negated(mask: Any) -> Any:
    negated = torch.bitwise_not(mask)
    negated.of_padding = True  # type: ignore[attr-defined]
    return negated


def _chosen(tensor: Any, index: Any) -> Any:
    if isinstance(index, torch.Tensor) and index.dtype == torch.bool:
        return tensor[:0] if hasattr(index, "of_padding") else tensor.clone()
    return tensor[index]
