"""Builds a pipeline's components on the meta device: every shape, no weights, no download."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from planner.case.work import Part
from planner.catalog.entry import Component
from planner.errors import InvalidFile, nearest


def build(component: Component, dtype: str, where: str = "the catalogue") -> Any:
    """Return the component as a module on the meta device, its weights in their stored format.

    Raises `InvalidFile` naming the field for a config that the library cannot build.
    """
    config = json.dumps(component.config, sort_keys=True)
    spot = f"{where}: {component.name}"
    return _built(component.library, component.cls, config, component.dtype or dtype, spot)


@lru_cache(maxsize=24)
def _built(library: str, cls: str, config: str, dtype: str, where: str) -> Any:
    """Build once for many shapes: a module on the meta device holds no numbers."""
    make = _maker(library, cls, where)
    fields = json.loads(config)
    try:
        module = make(fields)
    except Exception as error:
        raise _unbuildable(make, fields, cls, where, error) from error
    _store(module, library, getattr(torch, dtype))
    return module.eval().requires_grad_(False)


def part_of(name: str, phase: str, module: Any) -> Part:
    """Return what a module's weights take, persistent buffers included."""
    tensors = list(module.state_dict(keep_vars=True).values())
    distinct = {id(tensor): tensor for tensor in tensors if isinstance(tensor, torch.Tensor)}
    size = sum(tensor.numel() * tensor.element_size() for tensor in distinct.values())
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Part.model_validate(
        {"name": name, "phase": phase, "parameters": parameters, "bytes": size}
    )


def class_of(library: str, cls: str, where: str) -> Any:
    """Return a class of diffusers or transformers. Raises `InvalidFile` where there is none."""
    import importlib

    module = importlib.import_module(library)
    found = getattr(module, cls, None)
    if found is None:
        what = f"{where}: {library} has no class {cls!r}"
        close = [name for name in dir(module) if name[:3] == cls[:3]]
        raise InvalidFile(what, value=cls, way_out=nearest(cls, close) if close else "correct it")
    return found


def _maker(library: str, cls: str, where: str) -> Callable[[dict[str, Any]], Any]:
    """Return the function that builds the class from config fields."""
    found = class_of(library, cls, where)

    from transformers.initialization import no_init_weights

    def diffusers_model(fields: dict[str, Any]) -> Any:
        with torch.device("meta"), no_init_weights():
            return found(**fields)

    def transformers_model(fields: dict[str, Any]) -> Any:
        with torch.device("meta"), no_init_weights():
            module = found(found.config_class(**fields))
        module.tie_weights()  # such as an encoder's table of words, which loading would share
        return module

    return diffusers_model if library == "diffusers" else transformers_model


def _unbuildable(
    make: Callable[[dict[str, Any]], Any], fields: dict[str, Any], cls: str, where: str,
    error: Exception,
) -> InvalidFile:  # fmt: skip
    """Name the field without which the rest builds, or which the message names."""
    for name in fields:
        rest = {key: value for key, value in fields.items() if key != name}
        if _builds(make, rest) or f"'{name}'" in str(error):
            what = f"{where}: {cls} cannot be built with {name} = {fields[name]!r} ({error})"
            return InvalidFile(what, value=fields[name], way_out=f"correct the field {name}")
    what = f"{where}: {cls} cannot be built ({error})"
    return InvalidFile(what, value=cls, way_out="restore the config from its release")


def _builds(make: Callable[[dict[str, Any]], Any], fields: dict[str, Any]) -> bool:
    try:
        make(fields)
    except Exception:
        return False
    return True


def _store(module: Any, library: str, dtype: torch.dtype) -> None:
    """Give weights and buffers their stored number format, as `from_pretrained` would.

    Modules that a class keeps in float32 stay so; transformers does that under float16 only.
    """
    kept = tuple(getattr(module, "_keep_in_fp32_modules", None) or ())
    if library == "transformers" and dtype != torch.float16:
        kept = ()
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point():
            exact = any(part in name.split(".") for part in kept)
            tensor.data = tensor.data.to(torch.float32 if exact else dtype)
