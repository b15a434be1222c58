"""Keep what the blocks make of the conditioning alone, so that it is made once.

What it does: the layers that make scale, shift and gate of every block are fed by the timestep's
embedding (with the pooled prompt in some models), not by the latents. Their results are kept by the
content of that embedding, within a call and across calls: least recently used ones out first.
When it helps: all steps of every call but the first where the embedding holds the timestep alone
(Qwen-Image, CogVideoX, Z-Image), and half of the first where guidance is a second forward. Where it
holds the prompt too (FLUX, Stable Diffusion 3, HunyuanVideo, Mochi) the unconditional forward, and
prompts that come again with another seed. The layers hold a quarter to a third of the weights,
which a forward reads however few tokens it has; on many tokens they are a small part of its time.
What it costs: memory, up to a limit; one copy of the embedding to the host a forward, which waits
there for the device, since what is launched next depends on it; once a call a look at a few numbers
of every weight. All blocks share that one comparison: they are handed the same tensor, and a block
that is handed another one computes.
When not: where the host launches work late as it is, and every wait shows; in a captured graph,
which compares nothing. Edits of weights through `.data` that miss the numbers that are looked at
go unnoticed.
Source: adaptive layer norm, Peebles and Xie 2022, arXiv 2212.09748; what feeds the layers is read
from diffusers' blocks, of which those in `FED` are known here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.case.work import Operation, Phase, Work
from planner.case.workload import Workload
from planner.hooks.blocks import denoiser_of
from planner.hooks.branches import Tally
from planner.hooks.contents import Contents, content_of, sampled
from planner.hooks.modules import Place, kept_inside, places
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
from planner.passes.needs import fused_adapters, one_denoiser


class Fed(NamedTuple):
    """The parts of a block that see one argument alone, and whether that holds the prompt."""

    argument: str
    parts: tuple[str, ...]
    prompt: bool


_DOUBLE = Fed("temb", ("norm1.linear", "norm1_context.linear", "norm1_context.linear_1"), True)
_SINGLE = Fed("temb", ("norm.linear",), True)

FED = {
    "FluxTransformerBlock": _DOUBLE,
    "FluxSingleTransformerBlock": _SINGLE,
    "JointTransformerBlock": _DOUBLE,
    "HunyuanVideoTransformerBlock": _DOUBLE,
    "HunyuanVideoSingleTransformerBlock": _SINGLE,
    "MochiTransformerBlock": _DOUBLE,
    "CogVideoXBlock": Fed("temb", ("norm1.linear", "norm2.linear"), False),
    "QwenImageTransformerBlock": Fed("temb", ("img_mod", "txt_mod"), False),
    "ZImageTransformerBlock": Fed("adaln_input", ("adaLN_modulation",), False),
}
"""By block class. One that calls a part twice, or feeds it anything else, must not stand here."""

_MIB = 2**20


class ModulationCacheSettings(Settings):
    """How much is kept."""

    memory: int = knob(512, "MiB of results that are kept, at most", least=1, most=1_000_000)


class _Modulation:
    """Looks the conditioning of each forward up, once, at its first block."""

    def __init__(
        self, found: Sequence[Place], settings: ModulationCacheSettings, context: Context
    ) -> None:
        self._reads = [_reader(place.block) for place in found]
        self._modules = [place.block.get_submodule(path) for place in found for path in place.parts]
        self._runs = [(None,) * len(place.parts) for place in found]
        self._kept: Contents = context.kept.setdefault("modulation", Contents())
        self._kept.most = float(settings.memory * _MIB)
        self._statistics = context.statistics
        self._tally = Tally(context.statistics, context.clock)
        self._branch, self._checked, self._dropped = "", False, 0
        self._conditioning: Any = None
        self._key: Any = None
        self._mine = False

    def restart(self) -> None:
        """Look at the weights anew, and count from zero, in the coming call."""
        self._checked, self._dropped, self._conditioning = False, 0, None
        self._tally.restart()

    def begin(self, branch: str, form: Any) -> None:
        """Know nothing of the forward yet."""
        self._branch, self._conditioning = branch, None
        if self._checked:
            return
        self._checked = True
        self._kept.of(sampled(self._modules))

    def answers(self, place: int, args: Any, kwargs: Any) -> Sequence[Any]:
        """Return what a block's parts gave for this conditioning, if that is known."""
        conditioning = self._reads[place](args, kwargs)
        if self._conditioning is None and conditioning is not None:
            self._conditioning, self._key = conditioning, content_of(conditioning)
            known = bool(self._kept.rows(self._key))
            self._tally.add(self._branch, computed=not known)
            self._report()
        # Another tensor would be another comparison: it computes.
        self._mine = conditioning is not None and conditioning is self._conditioning
        found = self._kept.rows(self._key).get(place) if self._mine else None
        return found or self._runs[place]

    def keep(self, place: int, made: Sequence[Any]) -> None:
        """Keep what a block's parts gave, if all of them ran on this forward's conditioning."""
        if self._mine and all(one is not None for one in made):
            self._dropped += self._kept.add(self._key, place, made)
            self._report()

    def _report(self) -> None:
        # What is reused depends on the calls before: there is no rate to expect of one.
        self._statistics.pop("hit_rate", None)
        self._statistics.update(kept_bytes=self._kept.bytes, contents=len(self._kept),
                                dropped=self._dropped)  # fmt: skip


def _reader(block: Any) -> Callable[[Any, Any], Any]:
    """Return what reads the argument that feeds a block's parts out of its inputs."""
    kind = type(block)
    name = FED[kind.__name__].argument
    place = list(inspect.signature(kind.forward).parameters).index(name) - 1

    def read(args: Any, kwargs: Any) -> Any:
        return args[place] if place < len(args) else kwargs.get(name)

    return read


def _parts(listed: str, block: Any) -> tuple[str, ...]:
    """Return the paths of the parts that a block really has."""
    fed = FED.get(type(block).__name__)
    paths = {path for path, _ in block.named_modules()}
    return tuple(path for path in fed.parts if path in paths) if fed else ()


def apply(pipeline: Any, settings: ModulationCacheSettings, context: Context) -> Undo:
    """Put the cache on the parts of every known block."""
    denoiser = denoiser_of(pipeline)
    found = places(denoiser, _parts)
    keeper = _Modulation(found, settings, context)
    with ExitStack() as stack:
        stack.callback(context.clock.on_reset(keeper.restart))
        stack.callback(kept_inside(denoiser, found, keeper, context.clock,
                                   "planner_modulation_cache"))  # fmt: skip
        return stack.pop_all().close


def effect(work: Work, settings: ModulationCacheSettings, telemetry: Telemetry | None) -> Work:
    """Compute no modulation where the conditioning came in an earlier call: prompts are new.

    What does not fit into the memory that is allowed is dropped before it comes again.
    """
    phases = [phase for phase in work.phases if phase.name == "denoise" and _own(phase)]
    prompt = any(_name(op) in _WITH_PROMPT for phase in phases for op in _own(phase))
    again = {phase.branch for phase in phases if not prompt or phase.branch == "uncond"}
    sizes = [sum(op.bytes - op.weights for op in _own(phase)) * phase.calls for phase in phases]
    needed = (sum if prompt else max)(sizes) if sizes else 0.0  # else branches share theirs
    most = float(settings.memory * _MIB)
    held = most if prompt or needed > most else needed  # new prompts fill what is allowed

    def kept(phase: Phase) -> Phase:
        if phase.name != "denoise" or phase.branch not in again or needed > most:
            return phase
        own = {(op.path, op.kind) for op in _own(phase)}
        return phase.mapped(lambda op: op.model_copy(update={"share": 0.0})
                            if (op.path, op.kind) in own else op)  # fmt: skip

    return work.mapped(kept).model_copy(update={"kept": work.kept + (held if phases else 0.0)})


def _names(parts: Iterable[str]) -> set[str]:
    """Return the names right inside a block under which parts are counted."""
    return {part.partition(".")[0] for part in parts}


_PARTS = [part for fed in FED.values() for part in fed.parts]
_WHOLE = {part for part in _PARTS if "." not in part}
_LINEAR = _names(_PARTS) - _WHOLE
_WITH_PROMPT = _names(p for fed in FED.values() if fed.prompt for p in fed.parts) - _names(
    p for fed in FED.values() if not fed.prompt for p in fed.parts
)


def _own(phase: Phase) -> list[Operation]:
    """Return the operations of the parts that are kept: whole modules, or a norm's linear layer."""
    return [op for op in phase.operations if op.block and (
        _name(op) in _WHOLE or (_name(op) in _LINEAR and op.kind == "linear"))]  # fmt: skip


def _name(op: Operation) -> str:
    """Return the name of the module right inside its block."""
    return (*op.path.split("."), "", "", "")[2]


def observe(
    settings: ModulationCacheSettings, statistics: Statistics, workload: Workload
) -> str | None:
    """Answer a sentence if the memory is too small for one call, or no forward was seen."""
    if statistics.get("reused") or (statistics.get("computed") and not statistics.get("dropped")):
        return None
    forwards = statistics.get("computed", 0)
    return f"modulation_cache reused none of {forwards} forwards at memory {settings.memory}"


def _known_blocks(case: Case) -> str | None:
    traits = case.model.traits
    if any(name in FED for name in traits.block_classes):
        return None
    blocks = ", ".join(traits.block_classes) or traits.denoiser_class
    return (
        "modulation_cache needs blocks whose modulation is fed by the conditioning alone; "
        f"of {blocks} that is not known"
    )


def _conditioning_that_comes_again(case: Case) -> str | None:
    classes = [name for name in case.model.traits.block_classes if name in FED]
    if case.workload.guidance == "sequential" or not any(FED[name].prompt for name in classes):
        return None
    return (
        "modulation_cache needs conditioning that comes again; that of "
        f"{classes[0]} holds the prompt, and guidance is {case.workload.guidance}"
    )


_SOURCE = "diffusers 0.42.1, models/normalization.py: linear(silu(temb)) before any latents"

PASS = Pass(
    name="modulation_cache",
    family=Family.CACHING,
    stage=Stage.CACHE,
    fidelity=Fidelity.EXACT,
    source=_SOURCE,
    settings=ModulationCacheSettings,
    owns=("denoiser.modulation",),
    needs=(
        Need(_known_blocks, _SOURCE),
        Need(_conditioning_that_comes_again,
             "diffusers CombinedTimestepTextProjEmbeddings: timestep plus prompt"),
        fused_adapters("modulation_cache"),
        one_denoiser("modulation_cache"),
    ),
    effect=effect,
    apply=apply,
    observe=observe,
    batch_invariant=True,
)
