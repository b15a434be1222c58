"""Where weights rest, and leaving no trace once they rest where they did."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from planner.hooks.branches import drop_empty_registry

GROUP_HOOKS = ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading")
"""The hooks that diffusers' group offloading puts on a module, by name."""


def text_encoders_of(pipeline: Any) -> dict[str, Any]:
    """Return the pipeline's text encoders by the component's name."""
    return {
        name: part for name, part in pipeline.components.items()
        if name.startswith("text_encoder") and part is not None
    }  # fmt: skip


def grouped(
    models: Iterable[Any], group: Callable[[Any, Any], None], device: str | None = None
) -> Callable[[], None]:
    """Group the weights of models for a device, each for its own if None; returns the undo.

    `group` takes a model and the device. Where it fails, what was grouped before is undone, and
    every model is where it was.
    """
    import torch

    target = None if device is None else torch.device(device)
    places = [(model, model.device) for model in models]

    def undo() -> None:
        for model, home in places:
            ungroup(model, home)

    try:
        for model, home in places:
            group(model, target or home)
    except BaseException:
        undo()
        raise
    return undo


def settled(pipeline: Any, device: str) -> Callable[[], None]:
    """Bring to a device what no pass moves by itself; returns the undo."""
    import torch

    homes: list[tuple[Any, Any]] = []

    def undo() -> None:
        while homes:
            part, home = homes.pop()
            part.to(home)

    try:
        for part in pipeline.components.values():
            weight = next(part.parameters(), None) if isinstance(part, torch.nn.Module) else None
            if weight is not None and not _moves(part):
                homes.append((part, weight.device))
                part.to(device)
    except BaseException:
        undo()
        raise
    return undo


def _moves(root: Any) -> bool:
    """Tell whether hooks of accelerate or of diffusers bring a component's weights in and out."""
    registries = (vars(module).get("_diffusers_hook") for module in root.modules())
    grouped = any(one is not None and one.get_hook(GROUP_HOOKS[0]) for one in registries)
    return grouped or hasattr(root, "_hf_hook")


def ungroup(root: Any, device: Any) -> None:
    """Take diffusers' group offloading off a module; its weights come back to the device."""
    from diffusers.hooks import HookRegistry

    registry = HookRegistry.check_if_exists_or_initialize(root)
    for name in reversed(GROUP_HOOKS):
        registry.remove_hook(name, recurse=True)
    registry.invalidate_child_registries_cache()
    root.to(device)
    swept(root)


def swept(root: Any) -> None:
    """Drop empty hook registries, and instance attributes `forward` that are the class's own."""
    for module in root.modules():
        drop_empty_registry(module)
        forward = vars(module).get("forward")
        if getattr(forward, "__func__", None) is type(module).forward:
            del module.forward
