"""Says exactly which pipeline this is: hashes of every component's config and sampled weights."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

from planner.case.model import Component
from planner.case.noun import digest
from planner.errors import UsageError

SAMPLES = 16
"""Positions hashed in each tensor, evenly spread from its first value to its last."""

_VOLATILE = frozenset({
    "dtype", "torch_dtype", "transformers_version", "architectures", "auto_map",
})  # fmt: skip


def components_of(pipeline: Any) -> dict[str, Component]:
    """Return the fingerprint of every component that is there, by name."""
    found = {}
    for name, part in sorted(pipeline.components.items()):
        if part is not None and not isinstance(part, bool | int | float | str):
            part = getattr(part, "_orig_mod", part)
            found[name] = Component(
                class_name=type(part).__name__,
                config=digest(config_of(part)),
                weights=_weights(name, part),
            )
    return found


def config_of(part: Any) -> dict[str, Any]:
    """Return a component's settings that differ from its class's defaults, as JSON values.

    Left out are private keys, versions and dtypes: where a pipeline was loaded from, by which
    release and in which precision, does not make it another pipeline. A tokenizer's settings
    are its vocabulary and rules.
    """
    if hasattr(part, "get_vocab"):
        return _tokenizer(part)
    config = getattr(part, "config", part)
    if hasattr(config, "to_diff_dict"):
        settings = config.to_diff_dict()
    elif isinstance(config, Mapping):
        usual = _defaults(part)
        settings = {key: value for key, value in config.items() if usual.get(key, _NO) != value}
    else:
        settings = config.to_dict() if hasattr(config, "to_dict") else {}
    kept = {k: v for k, v in settings.items() if not k.startswith("_") and k not in _VOLATILE}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain


_NO = object()


def _defaults(part: Any) -> dict[str, Any]:
    parameters = inspect.signature(type(part)).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters}


def _tokenizer(tokenizer: Any) -> dict[str, Any]:
    rules: dict[str, Any] = {"vocabulary": tokenizer.get_vocab()}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        # A call sets these two on the live tokenizer; they are arguments, not its nature.
        rules.pop("truncation", None)
        rules.pop("padding", None)
    return {"rules": rules, "special": sorted(map(str, tokenizer.all_special_tokens))}


def _weights(name: str, part: Any) -> str | None:
    import torch

    if not isinstance(part, torch.nn.Module):
        return None
    try:
        return sampled_hash(part)
    except NotImplementedError as error:
        raise UsageError(
            f"the weights of {name} are not in memory", value=name,
            way_out="load the pipeline without offloading before matching it",
        ) from error  # fmt: skip


def sampled_hash(module: Any) -> str:
    """Return the sha256 over name, shape and sampled values of every tensor in the module.

    Values are taken as float32, so that weights stored in 16 bit and loaded in 32 hash alike.
    Weights stored in 32 bit and loaded in 16 are other numbers, and hash as such. Raises
    `NotImplementedError` where weights lie on the meta device.
    """
    import torch

    tensors = {
        name: value for name, value in module.state_dict().items()
        if isinstance(value, torch.Tensor)
    }  # fmt: skip
    described = sorted((name, list(value.shape)) for name, value in tensors.items())
    total = hashlib.sha256(json.dumps(described).encode())
    with torch.no_grad():
        samples = [_sample(tensors[name]) for name, _ in described]
        values = torch.cat([sample.cpu() for sample in samples]) if samples else torch.empty(0)
    total.update(values.numpy().tobytes())
    return total.hexdigest()


def _sample(tensor: Any) -> Any:
    """Return up to SAMPLES values of a tensor, as float32 on its own device."""
    import torch

    if type(tensor) is not torch.Tensor and hasattr(tensor, "dequantize"):
        tensor = tensor.dequantize()
    flat = tensor.reshape(-1)
    count = flat.numel()
    if count <= SAMPLES:
        return flat.float()
    last = count - 1
    index = torch.tensor([i * last // (SAMPLES - 1) for i in range(SAMPLES)], device=flat.device)
    return flat[index].float()
