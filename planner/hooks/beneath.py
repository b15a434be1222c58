"""Replacing a module's own forward underneath all hooks on it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any


def own_forward(block: Any) -> Callable[..., Any]:
    """Return what runs underneath all hooks on a block: its own forward, or its replacement."""
    slot = _innermost(block)
    found: Callable[..., Any] = block.forward if slot is None else getattr(*slot)
    return found


def beneath_hooks(block: Any, forward: Callable[..., Any]) -> Callable[[], None]:
    """Replace a block's own forward underneath all hooks on it; returns the undo.

    Hooks stay ordinary Python around it, so that what they do cannot break the replacement's
    graph, and the replacement is the same whatever hooks are on.
    """
    slot = _innermost(block)
    if slot is None:
        had = vars(block).get("forward")
        vars(block)["forward"] = forward
        return partial(_restore_forward, block, had)
    reference, name = slot
    inner = getattr(reference, name)
    setattr(reference, name, forward)
    return partial(setattr, reference, name, inner)


def _innermost(block: Any) -> tuple[Any, str] | None:
    """Return holder and attribute of the forward that the first hook calls; None without hooks."""
    registry = vars(block).get("_diffusers_hook")
    hooks = list(registry.hooks.values()) if registry is not None else []
    if not hooks:
        return None
    reference = hooks[0].fn_ref
    return reference, "forward" if reference.original_forward is None else "original_forward"


def _restore_forward(block: Any, had: Any) -> None:
    if had is None:
        vars(block).pop("forward", None)
    else:
        vars(block)["forward"] = had
