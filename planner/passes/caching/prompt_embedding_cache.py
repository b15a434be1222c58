"""Keep the text encoders' answers, so that a text that comes again is not encoded again.

What it does: remembers the result of `encode_prompt` for its exact arguments, least recently used
ones out first. A hit returns a copy of the very tensors that the encoders gave: images are equal
bit by bit.
When it helps: a fixed negative prompt is encoded once and for all; more, where users repeat
prompts with other seeds. The share of the encoders grows as denoising shrinks.
What it costs: the embeddings of `entries` texts in memory; a walk over the encoders' parameters
a call, so that changed weights or adapters are noticed.
When not: pipelines that encode prompt and negative prompt in one go, where only whole repeats
would hit. Timing that repeats one prompt shows a gain that fresh prompts do not have. Calls with
tensors, images or a LoRA scale among the encoder's arguments pass through uncached. Weights
changed through `.data` are not noticed.
Source: diffusers' pipelines, whose `encode_prompt` depends on its arguments and weights alone;
ComfyUI keeps conditionings between runs in the same way.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from planner.case.case import Case
from planner.case.noun import Scalar
from planner.case.telemetry import Telemetry
from planner.case.work import Phase, Work
from planner.case.workload import Workload
from planner.hooks.versions import adapter, version
from planner.passes.base import (
    Context,
    Family,
    Fidelity,
    Need,
    Pass,
    Settings,
    Stage,
    Statistics,
    Undo,
    knob,
)


class PromptEmbeddingCacheSettings(Settings):
    """How much is kept."""

    entries: int = knob(64, "texts whose embeddings are kept", least=1, most=100_000)


class _Cache:
    """Stands in for a pipeline's `encode_prompt`."""

    def __init__(self, pipeline: Any, entries: int, context: Context) -> None:
        import inspect

        self._pipeline = pipeline
        self._encode: Callable[..., Any] = pipeline.encode_prompt
        self._signature = inspect.signature(self._encode)
        self._entries = entries
        self._kept: OrderedDict[Any, Any] = context.kept.setdefault("texts", OrderedDict())
        self._encoders: dict[str, Any] = context.kept.setdefault("encoders", {})
        self._statistics: dict[str, Scalar] = context.statistics
        self._fresh = True

    def restart(self) -> None:
        """Count from zero at the next text."""
        self._fresh = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        key = self._key(args, kwargs)
        if key is None:
            self._count("bypassed")
            return self._encode(*args, **kwargs)
        encoders = fingerprint(self._pipeline)
        if encoders != self._encoders:
            self._kept.clear()
            self._encoders.clear()
            self._encoders.update(encoders)
        if key in self._kept:
            self._kept.move_to_end(key)
            self._count("hits")
            return copied(self._kept[key])
        found = self._encode(*args, **kwargs)
        self._kept[key] = copied(found)
        if len(self._kept) > self._entries:
            self._kept.popitem(last=False)
        self._count("misses")
        return found

    def _key(self, args: Any, kwargs: Any) -> Any:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        if bound.arguments.get("lora_scale") is not None:  # it also changes the pipeline
            return None
        values = [_plain(value) for value in bound.arguments.values()]
        return None if _NOT_PLAIN in values else tuple(values)

    def _count(self, what: str) -> None:
        if self._fresh:
            self._statistics.update({"hits": 0, "misses": 0, "bypassed": 0})
            self._fresh = False
        self._statistics[what] = int(self._statistics[what] or 0) + 1
        self._statistics["entries"] = len(self._kept)


_NOT_PLAIN = object()


def _plain(value: Any) -> Any:
    """Return a hashable equal of texts, numbers, devices and lists of them, else `_NOT_PLAIN`."""
    import torch

    if value is None or isinstance(value, str | int | float | torch.device | torch.dtype):
        return (type(value).__name__, value)
    if isinstance(value, list | tuple):
        inside = tuple(_plain(item) for item in value)
        return _NOT_PLAIN if _NOT_PLAIN in inside else inside
    return () if value == {} else _NOT_PLAIN


def copied(value: Any) -> Any:
    """Return the same nest of tuples and lists with every tensor cloned."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, list | tuple):
        return type(value)(copied(item) for item in value)
    return value


def fingerprint(pipeline: Any) -> dict[str, Any]:
    """Return what tells the text encoders' state apart: identity, weights, adapters, tokenizers."""
    import torch

    found: dict[str, Any] = {}
    for name, part in pipeline.components.items():
        if name.startswith("tokenizer"):
            found[name] = id(part)
        elif name.startswith("text_encoder") and isinstance(part, torch.nn.Module):
            weights = tuple(map(_version, part.parameters()))
            adapters = tuple(map(adapter, part.modules()))
            found[name] = (id(part), hash(weights), hash(adapters))
    return found


def _version(weight: Any) -> Any:
    return id(weight), weight.data_ptr(), weight.dtype, weight.device, version(weight)


def apply(pipeline: Any, settings: PromptEmbeddingCacheSettings, context: Context) -> Undo:
    """Put the cache in place of the pipeline's `encode_prompt`."""
    cache = _Cache(pipeline, settings.entries, context)
    had = vars(pipeline).get("encode_prompt")
    vars(pipeline)["encode_prompt"] = cache
    stop = context.clock.on_reset(cache.restart)

    def undo() -> None:
        stop()
        if had is None:
            del vars(pipeline)["encode_prompt"]
        else:
            vars(pipeline)["encode_prompt"] = had

    return undo


def effect(work: Work, settings: PromptEmbeddingCacheSettings, telemetry: Telemetry | None) -> Work:
    """Encode one text less a call, the negative one; every prompt counts as new."""

    def kept(phase: Phase) -> Phase:
        if phase.name != "encode" or phase.calls < 2:
            return phase
        return phase.model_copy(update={"calls": phase.calls - 1})

    return work.mapped(kept)


def observe(
    settings: PromptEmbeddingCacheSettings, statistics: Statistics, workload: Workload
) -> str | None:
    """Answer a sentence if every text passed by."""
    if statistics.get("hits") or statistics.get("misses"):
        return None
    passed = statistics.get("bypassed", 0)
    return f"prompt_embedding_cache kept no text; {passed} had arguments that cannot be compared"


def _says_something(case: Case) -> str | None:
    encoders = [name for name in case.model.components if name.startswith("text_encoder")]
    if encoders:
        return None
    return f"prompt_embedding_cache needs a text encoder; {case.model.pipeline} has none"


def _separate(case: Case) -> str | None:
    taken = case.model.traits.prompt_arguments
    if not taken:
        return (
            "prompt_embedding_cache needs a method encode_prompt; "
            f"{case.model.pipeline} has none"
        )
    if "negative_prompt" not in taken:
        return None
    return (
        "prompt_embedding_cache needs prompts that are encoded one by one; "
        f"{case.model.pipeline} encodes the negative prompt with each of them"
    )


_SOURCE = "diffusers pipelines: encode_prompt is a function of its arguments alone"

PASS = Pass(
    name="prompt_embedding_cache",
    family=Family.CACHING,
    stage=Stage.CACHE,
    fidelity=Fidelity.EXACT,
    source=_SOURCE,
    settings=PromptEmbeddingCacheSettings,
    owns=("pipeline.encode_prompt",),
    needs=(Need(_says_something, _SOURCE), Need(_separate, _SOURCE)),
    effect=effect,
    apply=apply,
    observe=observe,
    batch_invariant=True,
)
