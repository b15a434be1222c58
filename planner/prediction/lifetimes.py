"""Bytes of activations alive at once, from the lifetimes of real tensors."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any


def storage_of(tensor: Any) -> int:
    """Return what identifies a tensor's memory while it lives; views of it have the same."""
    key: int = tensor.untyped_storage()._cdata
    return key


class Lifetimes:
    """Follows every storage from its first tensor to the death of its last one.

    `fixed` are storages that are no activations: parameters and buffers. `crest` is the peak with
    what operations hold for themselves while they run.
    """

    def __init__(self, fixed: Iterable[int] = ()) -> None:
        self.fixed = set(fixed)
        self.alive = 0.0
        self.peak = 0.0
        self.crest = 0.0
        self._tensors: dict[int, int] = {}
        self._bytes: dict[int, int] = {}

    def see(self, tensor: Any) -> None:
        """Take note of a tensor that an operation returned."""
        key = storage_of(tensor)
        if key in self.fixed:
            return
        if key not in self._tensors:
            self._tensors[key] = 0
            self._bytes[key] = tensor.untyped_storage().nbytes()
            self.alive += self._bytes[key]
            self.raise_to(self.alive)
        self._tensors[key] += 1
        weakref.finalize(tensor, self._gone, key).atexit = False

    def raise_to(self, peak: float, crest: float = 0.0) -> None:
        """Take note of so many bytes at once, and of so many with what operations hold."""
        self.peak = max(self.peak, peak)
        self.crest = max(self.crest, self.peak, crest)

    def restart(self) -> None:
        """Begin a new phase: its peak starts from what is alive now."""
        self.peak = self.crest = self.alive

    def _gone(self, key: int) -> None:
        self._tensors[key] -= 1
        if not self._tensors[key]:
            del self._tensors[key]
            self.alive -= self._bytes.pop(key)
