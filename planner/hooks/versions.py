"""Whether tensors, weights and adapters are still what they were."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def version(tensor: Any) -> int:
    """Return how often a tensor was changed in place; tensors of inference mode do not count."""
    return 0 if tensor.is_inference() else int(tensor._version)


_ADAPTER = ("scaling", "merged_adapters", "_active_adapter", "_disable_adapters")


def adapter(module: Any) -> tuple[Any, ...]:
    """Return what tells the states of an adapter's layer apart."""
    known = vars(module)  # a module's own lookup of what it has not is slow
    return module.training, *(str(known.get(name, "")) for name in _ADAPTER)


class Weights:
    """Tells whether weights or adapters of some modules have changed.

    Where they lie does not count: offloading moves them. Weights changed through `.data` are not
    noticed.
    """

    def __init__(self, modules: Iterable[Any]) -> None:
        inside = [part for module in modules for part in module.modules()]
        self._holders = [part for part in inside if part._parameters]
        self._adapters = [part for part in inside if _ADAPTER[0] in vars(part)]

    def state(self) -> tuple[Any, ...]:
        """Return a value that is equal as long as nothing has changed."""
        held = (w for part in self._holders for w in part._parameters.values() if w is not None)
        return tuple((id(w), version(w)) for w in held), tuple(map(adapter, self._adapters))
