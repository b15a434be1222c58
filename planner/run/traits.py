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
from planner.hooks.blocks import DENOISERS, Segment, denoiser_name, denoiser_of, segments

_ENDS_WITHOUT_TEXT = ("JointTransformerBlock",)
"""Block classes that return no text stream where `context_pre_only` says so: SD3's last."""

_BRANCH = re.compile(r"cache_context\(\s*[\"'](\w+)[\"']")
_CALL = re.compile(rf"self\.(?:{'|'.join(DENOISERS)})\(")
_DOUBLED = re.compile(r"cat\(\s*\[(\w+)\]\s*\*\s*2|cat\(\s*\[(\w+),\s*\2\]")
"""How pipelines put both halves of a guided batch together."""


def traits_of(pipeline: Any) -> Traits:
    """Return the structure of a pipeline's denoiser and the branches it is called in.

    The repeated blocks are those of the lists that passes work on: see `hooks.blocks.segments`.
    """
    name, module = denoiser_name(pipeline), denoiser_of(pipeline)
    declared = tuple(getattr(module, "_repeated_blocks", None) or ())
    parts = _parts(module)
    blocks = [block for part in parts for block in part.blocks]
    skippable = bool(blocks) and all(_registered(type(block)) for block in blocks)
    return Traits(
        denoiser=name,
        denoiser_class=type(module).__name__,
        block_classes=tuple(dict.fromkeys(type(block).__name__ for block in blocks)),
        blocks=len(blocks),
        cacheable=skippable and _readable(parts),
        skippable=skippable,
        attention=_attention(module) if parts else (),
        compilable=bool(declared),
        extra_channels=_extra_channels(module.config),
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
    named = {"cond", "uncond"} <= set(branches)
    return "sequential" if named or _calls_twice(_class(pipeline)) else "batched"


def _extra_channels(config: Any) -> int:
    """Return the channels that a denoiser takes beyond those that it returns, patches counted.

    Some configs count the output's before they are packed into patches.
    """
    taken = config.get("in_channels") or 0
    returned = config.get("out_channels") or taken
    patch = config.get("patch_size")
    packed = returned * patch**2 if isinstance(patch, int) else returned
    return 0 if taken in (returned, packed) else int(taken) - int(returned)


def _embeds_guidance(pipeline: Any) -> bool:
    config = denoiser_of(pipeline).config
    return bool(config.get("guidance_embeds")) or config.get("time_cond_proj_dim") is not None


def _parts(denoiser: Any) -> tuple[Segment, ...]:
    """Return the block lists that passes can work on; none where there are none."""
    try:
        return segments(denoiser)
    except UsageError:
        return ()


def _readable(parts: tuple[Segment, ...]) -> bool:
    """Tell whether diffusers' block caches can read what these registered blocks take and return.

    They look for the streams by their usual names, add up what blocks of all lists return, and
    read every stream of the last. Source: diffusers.hooks.first_block_cache.
    """
    from diffusers.hooks._helpers import TransformerBlockRegistry

    kinds = {type(block) for part in parts for block in part.blocks}
    texts = {TransformerBlockRegistry.get(kind).return_encoder_hidden_states_index is not None
             for kind in kinds}  # fmt: skip
    streams = {"hidden_states", "encoder_hidden_states"} if True in texts else {"hidden_states"}
    last = parts[-1].blocks[-1]
    return (
        len(texts) == 1
        and all(streams <= set(inspect.signature(kind.forward).parameters) for kind in kinds)
        and not any("temporal" in part.name for part in parts)  # one stream, turned for each list
        and not (type(last).__name__ in _ENDS_WITHOUT_TEXT and last.context_pre_only)
    )


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
    return tuple(dict.fromkeys(_BRANCH.findall(_text(kind))))


@cache
def _calls_twice(kind: Any) -> bool:
    """Tell whether the pipeline's call runs its denoiser once for each branch, naming neither."""
    return len(_CALL.findall(_text(kind))) > 1 and not _DOUBLED.search(_text(kind))


def _text(kind: Any) -> str:
    try:
        return inspect.getsource(inspect.unwrap(kind.__call__))
    except (OSError, TypeError):
        return ""  # a class made at run time has no text
