"""Counts operations as torch dispatches them: one counter for real calls and for the meta device.

Floating-point operations come from torch's own formulas (one multiply-add is two); attention is
counted as a fused kernel; bytes are what each operation reads and writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from planner.case.work import Kind, Operation
from planner.hooks.text import CROSS
from planner.prediction.lifetimes import Lifetimes, storage_of

_NORMS = ("layer_norm", "rms_norm", "group_norm", "batch_norm", "rsqrt")
_FREE = (
    "empty", "new_empty", "empty_like", "empty_strided", "_unsafe_view", "detach", "lift_fresh",
)  # fmt: skip
_UNET = ("down_blocks", "up_blocks")


@dataclass
class _Sum:
    """What one group of operations adds up to over all calls."""

    flops: float = 0.0
    bytes: float = 0.0
    weights: float = 0.0
    launches: int = 0
    dtype: str = ""

    def take(self, other: _Sum) -> None:
        """Add another group's sums."""
        self.flops += other.flops
        self.bytes += other.bytes
        self.weights += other.weights
        self.launches += other.launches
        self.dtype = self.dtype or other.dtype


@dataclass
class Tally:
    """What the operations of one phase add up to, by module, kind and block.

    `peak` is the most bytes of activations alive at once, `crest` the same with the copies that
    convolutions make of what they read and write: tensor cores take channels last.
    """

    sums: dict[tuple[str, Kind, bool], _Sum] = field(default_factory=dict)
    peak: float = 0.0
    crest: float = 0.0

    def take(self, other: Tally, path: str = "", instead: str = "") -> None:
        """Add what another tally holds; groups below `path` are named below `instead`."""
        for (group, kind, block), theirs in other.sums.items():
            below = bool(path) and f"{group}.".startswith(f"{path}.")
            name = instead + group[len(path) :] if below else group
            self.sums.setdefault((name, kind, block), _Sum()).take(theirs)

    def operations(self, calls: int = 1) -> tuple[Operation, ...]:
        """Return the operations of one call, where the sums are of several."""
        return tuple(
            Operation(
                path=path, kind=kind, flops=group.flops / calls, bytes=group.bytes / calls,
                weights=group.weights / calls, dtype=group.dtype, block=block,
                launches=max(1, group.launches // calls),
            )
            for (path, kind, block), group in self.sums.items()
        )  # fmt: skip


class Scope:
    """Where in a component's modules the program is: the group that an operation belongs to."""

    def __init__(self, base: str = "") -> None:
        self._base = base
        self._inside: list[tuple[str, bool]] = []

    @property
    def place(self) -> tuple[str, bool]:
        """Return the path of the innermost group, and whether it is in the block stack."""
        return self._inside[-1] if self._inside else (self._base, False)

    def follow(
        self, stack: ExitStack, root: Any, blocks: frozenset[str] = frozenset(), prefix: str = ""
    ) -> None:
        """Hook the groups of a component until the stack is left; `prefix` names the component."""
        for path, module in root.named_modules():
            if not path and prefix:
                self._hook(stack, module, (prefix, False))
            elif path and _is_group(path, blocks):
                place = (f"{prefix}.{path}" if prefix else path, _in_block(path, blocks))
                self._hook(stack, module, place)

    def _hook(self, stack: ExitStack, module: Any, place: tuple[str, bool]) -> None:
        def enter(*_: Any) -> None:
            self._inside.append(place)

        def leave(*_: Any) -> None:
            self._inside.pop()

        stack.callback(module.register_forward_pre_hook(enter).remove)
        stack.callback(module.register_forward_hook(leave, always_call=True).remove)


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sends every operation that torch dispatches to the tally of the phase that is on."""

    def __init__(self, scope: Scope, weights: Iterable[Any] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.scope = scope
        self.lifetimes = Lifetimes(storage_of(tensor) for tensor in weights)
        self._tally: Tally | None = None

    def begin(self, tally: Tally) -> None:
        """Count for this phase from now on."""
        self._tally = tally
        self.lifetimes.restart()

    def end(self) -> None:
        """Count for no phase any more."""
        if self._tally is not None:
            self._tally.peak = max(self._tally.peak, self.lifetimes.peak)
            self._tally.crest = max(self._tally.crest, self.lifetimes.crest)
        self._tally = None

    @contextmanager
    def apart(self) -> Iterator[Tally]:
        """Count a stretch in a tally of its own, which is added to the phase's afterwards.

        The stretch's peak is what it needs beyond what is alive when it begins.
        """
        around, stretch, lives = self._tally, Tally(), self.lifetimes
        before, begun = (lives.peak, lives.crest), lives.alive
        self._tally = stretch
        lives.restart()
        try:
            yield stretch
        finally:
            self._tally = around
            stretch.peak, stretch.crest = lives.peak - begun, lives.crest - begun
            lives.raise_to(*before)
            if around is not None:
                around.take(stretch)

    def repeat(self, stretch: Tally, path: str, instead: str) -> None:
        """Count a stretch once more, its groups below `path` under another name."""
        alive = self.lifetimes.alive
        self.lifetimes.raise_to(alive + stretch.peak, alive + stretch.crest)
        if self._tally is not None:
            self._tally.take(stretch, path, instead)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        written = _tensors(out)
        for tensor in written:
            self.lifetimes.see(tensor)
        if self._tally is not None and not _is_free(func):
            self._add(self._tally, func, args, kwargs or {}, out, written)
        return out

    def _add(
        self, tally: Tally, func: Any, args: Any, kwargs: Any, out: Any, written: list[Any]
    ) -> None:
        path, block = self.scope.place
        kind = _kind(func)
        group = tally.sums.setdefault((path, kind, block), _Sum())
        read = _tensors((args, kwargs))
        if func._schema.name in ("aten::embedding", "aten::index_select"):
            read = [*written, read[-1]]  # a lookup reads the rows it returns, not the whole table
        fixed = self.lifetimes.fixed
        group.weights += _bytes(tensor for tensor in read if storage_of(tensor) in fixed)
        group.bytes += _bytes(read) + _bytes(written)
        group.flops += _flops(func, args, kwargs, out, written)
        group.launches += 1
        group.dtype = group.dtype or _multiplied(func, args, written)
        if kind == "convolution":
            self.lifetimes.raise_to(0.0, self.lifetimes.alive + _copies(args[0], out))


def fixed_tensors(module: Any) -> list[Any]:
    """Return a module's parameters and buffers: what is in memory whether it runs or not."""
    return [*module.parameters(), *module.buffers()]


def blocks_of(denoiser: Any) -> frozenset[str]:
    """Return the names of the repeated blocks: of a transformer's lists, or a UNet's stages."""
    from diffusers.hooks._common import _ALL_TRANSFORMER_BLOCK_IDENTIFIERS

    found = {"mid_block"} if hasattr(denoiser, "mid_block") else set()
    for name, child in denoiser.named_children():
        listed = isinstance(child, torch.nn.ModuleList)
        if listed and name in (*_ALL_TRANSFORMER_BLOCK_IDENTIFIERS, *_UNET):
            found |= {f"{name}.{index}" for index in range(len(child))}
    return frozenset(found)


def _in_block(path: str, blocks: frozenset[str]) -> bool:
    parts = path.split(".")
    return ".".join(parts[:2]) in blocks or parts[0] in blocks


def _is_group(path: str, blocks: frozenset[str]) -> bool:
    """Tell whether a module names a group: blocks, their parts, other lists' items and parts.

    What cross-attention makes of the text is a group of its own: it may be made once a call.
    """
    parts = path.split(".")
    if _in_block(path, blocks):
        if path.endswith(CROSS):
            return True
        return len(parts) <= 3 or (len(parts) == 4 and parts[3].isdigit())
    listed = parts[-1].isdigit() and not any(part.isdigit() for part in parts[:-1])
    return len(parts) == 1 or listed


def _copies(read: Any, out: Any) -> float:
    """Return the bytes of what a convolution reads and writes, copied with channels last.

    Batches of 2**31 numbers are split into some of 2**30 at most.
    Source: torch, aten/src/ATen/native/cudnn/ConvShared.cpp, split_batch_dim_to_32bit_out.
    """
    whole = max(read.numel(), out.numel())
    share = 1.0 if whole < 2**31 else max(2**30 / whole, 1 / len(read))
    return share * _bytes([read, out])


@cache
def _is_free(function: Any) -> bool:
    """Tell whether an operation computes nothing: views and uninitialised memory."""
    if function._schema.name.partition("::")[2] in _FREE:
        return True
    returns = function._schema.returns
    return bool(returns) and all(r.alias_info and not r.alias_info.is_write for r in returns)


@cache
def _is_integer(function: Any) -> bool:
    return function._schema.name in (
        "quantized::linear_dynamic", "planner::int8_linear", "aten::_int_mm"
    )  # fmt: skip


def _multiplied(function: Any, args: Any, written: list[Any]) -> str:
    """Return the type that an operation multiplies: a scaled product writes a wider one."""
    if _is_integer(function):
        return "int8"
    return _dtype(_tensors(args) if "_scaled_mm" in function._schema.name else written)


@cache
def _kind(function: Any) -> Kind:
    name = function._schema.name.partition("::")[2]
    if "scaled_dot_product" in name or name in ("bmm", "baddbmm", "_softmax"):
        return "attention"
    if name in ("mm", "addmm", "_int_mm", "_scaled_mm", "_scaled_mm_v2") or "linear" in name:
        return "linear"
    if "convolution" in name:
        return "convolution"
    return "normalisation" if any(norm in name for norm in _NORMS) else "elementwise"


def _flops(function: Any, args: Any, kwargs: Any, out: Any, written: list[Any]) -> float:
    if "scaled_dot_product" in function._schema.name:
        batch, heads, queries, width = args[0].shape
        pairs: float = batch * heads * queries * args[1].shape[2]
        return 4.0 * pairs * float(width)
    if _is_integer(function):
        return 2.0 * float(args[0].numel() * out.shape[-1])
    known = flop_registry.get(function._overloadpacket)
    if known is not None:
        return float(known(*args, **kwargs, out_val=out))
    return float(sum(tensor.numel() for tensor in written))


def _tensors(values: Any) -> list[Any]:
    if isinstance(values, torch.Tensor):
        return [values]
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _bytes(tensors: Iterable[Any]) -> float:
    """Return the bytes that tensors span; what is repeated by expanding lies in memory once."""
    return float(sum(
        min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
        for tensor in tensors
    ))  # fmt: skip


def _dtype(tensors: list[Any]) -> str:
    return next((str(tensor.dtype).removeprefix("torch.") for tensor in tensors), "")
