"""Results kept by the content of the tensor that they follow from, and by the weights they took."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

_NUMBERS = 16
"""How many numbers of each weight are looked at, evenly spaced."""

Rows = dict[int, tuple[Any, ...]]
"""Tensors by the place that made them."""


class Contents:
    """Rows by content, in order of last use: the oldest go where they are more than `most` bytes.

    They hold for one state of the weights: another one clears them.
    """

    def __init__(self) -> None:
        self.most = 0.0
        self.bytes = 0
        self._weights: Any = None
        self._entries: OrderedDict[Any, Rows] = OrderedDict()

    def __len__(self) -> int:
        """Return how many contents are known."""
        return len(self._entries)

    def of(self, weights: Any) -> None:
        """Say what the weights are now."""
        if weights != self._weights:
            self._entries.clear()
            self._weights, self.bytes = weights, 0

    def rows(self, content: Any) -> Rows:
        """Return what is known for a content, which is then the newest."""
        found = self._entries.setdefault(content, {})
        self._entries.move_to_end(content)
        return found

    def add(self, content: Any, place: int, made: Sequence[Any]) -> int:
        """Keep what a place made; returns how many contents were dropped for it."""
        self.rows(content)[place] = tuple(made)
        self.bytes += _bytes(made)
        before = len(self._entries)
        while self.bytes > self.most:
            _, rows = self._entries.popitem(last=False)
            self.bytes -= sum(map(_bytes, rows.values()))
        return before - len(self._entries)


def _bytes(made: Iterable[Any]) -> int:
    return sum(one.nbytes for one in made)


def content_of(tensor: Any) -> tuple[Any, ...]:
    """Return what a tensor holds, with all else that results of it depend on.

    Waits for the device: the host cannot tell otherwise.
    """
    import torch

    device = tensor.device.type
    cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    numbers = tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy().tobytes()
    return tensor.shape, tensor.dtype, tensor.device, cast, numbers


def sampled(modules: Iterable[Any]) -> tuple[Any, ...]:
    """Return what tells modules' weights from others: identities, counts of edits, some numbers.

    Weights that move between devices stay the same. Waits once for each device they are on.
    """
    import torch

    known: list[Any] = []
    numbers: dict[Any, list[Any]] = {}
    for module in modules:
        known.append(id(module))
        for tensor in chain(module.parameters(), module.buffers()):
            edits = 0 if tensor.is_inference() else tensor._version
            known.append((id(tensor), edits, tensor.dtype))
            if type(tensor) in (torch.Tensor, torch.nn.Parameter):  # others may not be cut
                flat = tensor.detach().reshape(-1)
                every = max(1, flat.numel() // _NUMBERS)
                numbers.setdefault(tensor.device, []).append(flat[::every][:_NUMBERS].float())
    read = [torch.cat(parts).cpu().numpy().tobytes() for parts in numbers.values()]
    return tuple(known), tuple(read)
