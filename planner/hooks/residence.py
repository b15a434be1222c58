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


def grouped(models: Iterable[Any], group: Callable[[Any, Any], None]) -> Callable[[], None]:
    """Group the weights of models, each for the device that it is on now; returns the undo.

    `group` takes a model and its device. Where it fails, what was grouped before is undone.
    """
    places = [(model, model.device) for model in models]

    def undo() -> None:
        for model, device in places:
            ungroup(model, device)

    try:
        for model, device in places:
            group(model, device)
    except BaseException:
        undo()
        raise
    return undo


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
