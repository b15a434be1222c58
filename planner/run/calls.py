"""The keyword arguments of a pipeline call: defaults, what a caller overrides, batch sizes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from planner.case.workload import Workload

_CONTENT = frozenset({
    "prompt", "prompt_2", "prompt_3", "prompt_embeds", "pooled_prompt_embeds", "generator",
    "latents", "output_type", "return_dict", "image", "mask_image", "control_image",
    "callback_on_step_end", "callback_on_step_end_tensor_inputs", "num_images_per_prompt",
    "num_videos_per_prompt",
})  # fmt: skip
"""Arguments that say what to draw or how to hand it over; they leave the workload as it is."""


def reference_call(workload: Workload, prompts: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of the untouched call for these prompts (without a generator).

    One prompt is passed as text, more as a list, a negative prompt once for each.
    """
    prompt = prompts[0] if len(prompts) == 1 else list(prompts)
    return merged(workload.call, {"prompt": prompt})


def merged(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Put defaults under the given arguments.

    A default text gives way where its embeddings are given, and is repeated where a list of
    prompts is: diffusers refuses the first and pairs the second wrongly.
    """
    under = {
        key: value for key, value in defaults.items()
        if key not in given and f"{key}_embeds" not in given
    }  # fmt: skip
    prompt = given.get("prompt")
    if isinstance(prompt, list):
        for key in ("negative_prompt", "negative_prompt_2"):
            if isinstance(under.get(key), str):
                under[key] = [under[key]] * len(prompt)
    return {**under, **given}


def batch_of(arguments: Mapping[str, Any]) -> int:
    """Return how many images a call with these arguments draws."""
    prompt, embeds = arguments.get("prompt"), arguments.get("prompt_embeds")
    if isinstance(prompt, list):
        count = len(prompt)
    else:
        count = 1 if prompt is not None or embeds is None else int(embeds.shape[0])
    copies = arguments.get("num_images_per_prompt") or arguments.get("num_videos_per_prompt")
    return count * int(copies or 1)


def departures(
    given: Mapping[str, Any], defaults: Mapping[str, Any], signature: inspect.Signature, batch: int
) -> dict[str, str]:
    """Return, by argument name, how the given arguments leave the call that defaults describe.

    Empty for a call that draws something else in the same way.
    """
    found = {}
    for name, value in given.items():
        if name in _CONTENT:
            continue
        usual = defaults.get(name, _default(signature, name))
        if isinstance(value, list) and isinstance(usual, str) and set(map(str, value)) == {usual}:
            continue
        if not _same(value, usual):
            found[name] = f"{name}={_shown(value)} instead of {_shown(usual)}"
    if batch_of(given) != batch:
        found["batch"] = f"{batch_of(given)} images a call instead of {batch}"
    return found


def _default(signature: inspect.Signature, name: str) -> Any:
    parameter = signature.parameters.get(name)
    return None if parameter is None else parameter.default


def _same(value: Any, usual: Any) -> bool:
    """Compare plain values; a tensor or array is never the same as a default."""
    plain = (str, int, float, bool, type(None), list, tuple, dict)
    return isinstance(value, plain) and bool(value == usual)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{type(value).__name__}(…)"
