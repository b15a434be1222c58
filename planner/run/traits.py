"""What passes ask about a pipeline's structure: denoiser, repeated blocks, branches, guidance."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from planner.case.model import Traits
from planner.case.noun import Scalar
from planner.case.workload import Guidance
from planner.errors import UsageError
from planner.hooks.attention import KINDS, attention_in, kinds_at
from planner.hooks.blocks import denoiser_name, denoiser_of, segments

_BRANCH = re.compile(r"cache_context\(\s*[\"'](\w+)[\"']")


def traits_of(pipeline: Any) -> Traits:
    """Return the structure of a pipeline's denoiser and the branches it is called in.

    The repeated blocks are those of the lists that passes work on: see `hooks.blocks.segments`.
    """
    name, module = denoiser_name(pipeline), denoiser_of(pipeline)
    declared = tuple(getattr(module, "_repeated_blocks", None) or ())
    blocks = _blocks(module)
    registered = all(_registered(type(block)) for block in blocks)
    return Traits(
        denoiser=name,
        denoiser_class=type(module).__name__,
        block_classes=tuple(dict.fromkeys(type(block).__name__ for block in blocks)),
        blocks=len(blocks),
        cacheable=bool(blocks) and hasattr(module, "enable_cache") and registered,
        skippable=bool(blocks) and registered,
        attention=_attention(module) if blocks else (),
        compilable=bool(declared),
        branches=_branches(_class(pipeline)),
        prompt_arguments=_prompt_arguments(pipeline),
    )


def guidance_of(pipeline: Any, call: Mapping[str, Scalar]) -> Guidance:
    """Say how this pipeline computes the unconditional branch in a call with these arguments.

    Sequential: a second forward at every step; batched: in the same forward; embedded: the
    scale is an input of the denoiser; none: there is no such branch.
    """
    usual = inspect.signature(type(pipeline).__call__).parameters
    branches = _branches(_class(pipeline))

    def value(name: str) -> Any:
        return call.get(name, usual[name].default) if name in usual else None

    # Pipelines with true guidance want a negative prompt as well; the others make an empty one.
    if "true_cfg_scale" in usual:
        if (value("true_cfg_scale") or 0) > 1 and value("negative_prompt") is not None:
            return "sequential" if len(branches) != 1 else "batched"
        return "embedded" if _embeds_guidance(pipeline) else "none"
    if _embeds_guidance(pipeline):
        return "embedded"
    if (value("guidance_scale") or 0) <= 1:
        return "none"
    return "sequential" if {"cond", "uncond"} <= set(branches) else "batched"


def _embeds_guidance(pipeline: Any) -> bool:
    config = denoiser_of(pipeline).config
    return bool(config.get("guidance_embeds")) or config.get("time_cond_proj_dim") is not None


def _blocks(denoiser: Any) -> list[Any]:
    """Return the blocks that passes can work on, in calling order; none where there is no list."""
    try:
        found = segments(denoiser)
    except UsageError:
        return []
    return [block for part in found for block in part.blocks]


def _attention(denoiser: Any) -> tuple[str, ...]:
    """Return the kinds of attention inside the blocks."""
    found = {kind for place in attention_in(denoiser) for kind in kinds_at(place)}
    return tuple(kind for kind in KINDS if kind in found)


def _prompt_arguments(pipeline: Any) -> tuple[str, ...]:
    """Return the parameters of the pipeline's `encode_prompt`."""
    encode = getattr(type(pipeline), "encode_prompt", None)
    if encode is None:
        return ()
    return tuple(name for name in inspect.signature(encode).parameters if name != "self")


def _registered(kind: type) -> bool:
    from diffusers.hooks._helpers import TransformerBlockRegistry

    try:
        TransformerBlockRegistry.get(kind)
    except ValueError:
        return False
    return True


def _class(pipeline: Any) -> Any:
    return type(pipeline)


@cache
def _branches(kind: Any) -> tuple[str, ...]:
    """Return the names that the pipeline's call gives to `cache_context`, in order of the text."""
    try:
        text = inspect.getsource(inspect.unwrap(kind.__call__))
    except (OSError, TypeError):
        return ()  # a class made at run time has no text
    return tuple(dict.fromkeys(_BRANCH.findall(text)))
