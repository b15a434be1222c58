"""Stream the denoiser's weights in, block by block or layer by layer.

What it does: the denoiser rests on the host; each group of blocks (or each single layer) moves to
the device right before its forward. On a stream of its own the next group is on its way while the
present one computes.
When it helps: the denoiser alone does not fit. Long computations over few weights (video) hide the
transfers whole.
What it costs: the denoiser crosses the link at every forward, and back again without a stream; with
one, a pinned copy of it on the host.
When not: the denoiser fits, or few tokens a forward: the link is then what takes the time.
Source: diffusers' apply_group_offloading.

On a stream, diffusers moves one block at a time. The order in which blocks are fetched ahead is
that of the first forward; a block that was skipped then is fetched when it is needed.
"""

from __future__ import annotations

from typing import Any, Literal

from planner.case.case import Case
from planner.case.telemetry import Telemetry
from planner.case.work import Part, Phase, Work
from planner.case.workload import Workload
from planner.hooks.blocks import denoisers_of
from planner.hooks.residence import grouped
from planner.passes.base import (
    Avoid,
    Context,
    Family,
    Fidelity,
    Pass,
    Settings,
    Stage,
    Statistics,
    Undo,
    knob,
)
from planner.passes.needs import on_cuda


class GroupOffloadSettings(Settings):
    """How much moves at once, and when."""

    level: Literal["block", "leaf"] = knob(
        "block", "what moves as one: blocks of the stack, or single layers",
        choices=("block", "leaf"),
    )  # fmt: skip
    stream: bool = knob(
        True, "whether the next group is fetched while one computes", choices=(False, True)
    )
    blocks: int = knob(1, "blocks in a group; on a stream it is one", least=1, most=1000)


def apply(pipeline: Any, settings: GroupOffloadSettings, context: Context) -> Undo:
    """Group every denoiser's weights; they move to the device that it is on now."""
    from diffusers.hooks import apply_group_offloading

    def group(model: Any, device: Any) -> None:
        apply_group_offloading(
            model, onload_device=device, offload_type=f"{settings.level}_level",
            num_blocks_per_group=settings.blocks, use_stream=settings.stream,
        )  # fmt: skip

    models = denoisers_of(pipeline).values()
    undo = grouped(models, group, context.device)
    context.statistics.update(groups=sum(map(_groups, models)))
    return undo


def _groups(model: Any) -> int:
    registries = (vars(module).get("_diffusers_hook") for module in model.modules())
    hooks = (one.get_hook("group_offloading") for one in registries if one is not None)
    return len({id(hook.group) for hook in hooks if hook is not None})


def effect(work: Work, settings: GroupOffloadSettings, telemetry: Telemetry | None) -> Work:
    """Stream the denoiser's bytes through a window at every forward that computes its blocks."""
    experts = [p.bytes for p in work.parts if p.phase == "denoise" and p.place == "device"]
    resting = sum(experts) / max(1, len(experts))  # a phase calls one of them
    ways = 1 if settings.stream else 2  # without a stream nothing is kept on the host

    def phase_of(phase: Phase) -> Phase:
        if phase.name != "denoise" or not resting:
            return phase
        crossed = resting * phase.calls * _crossing(phase) * ways
        return phase.model_copy(update={
            "transfers": phase.transfers + crossed,
            "overlapped": settings.stream and (phase.overlapped or not phase.transfers),
        })  # fmt: skip

    share = _window(work, settings)

    def part_of(part: Part) -> Part:
        if part.phase != "denoise" or part.place != "device":
            return part
        return part.model_copy(update={"place": "streamed", "window": part.bytes * share})

    changed = work.mapped(phase_of)
    return changed.model_copy(update={"parts": tuple(map(part_of, work.parts))})


def _crossing(phase: Phase) -> float:
    """Return the part of the blocks' weights that is used in a call: a cache leaves some out."""
    inside = [op for op in phase.operations if op.block]
    used = sum(op.weights * op.share for op in inside)
    total = sum(op.weights for op in inside)
    return used / total if total else min((op.share for op in inside), default=1.0)


def _window(work: Work, settings: GroupOffloadSettings) -> float:
    """Return the part of the denoiser's bytes that is on the device at once, at most."""
    denoise = next((phase for phase in work.phases if phase.name == "denoise"), None)
    operations = () if denoise is None else denoise.operations
    total = sum(op.weights for op in operations)
    at_once = 2 if settings.stream else 1
    if settings.level == "leaf":
        largest = max((op.weights for op in operations), default=0.0)
        return min(1.0, at_once * largest / total) if total else 1.0
    blocks = len({tuple(op.path.split(".")[:2]) for op in operations if op.block})
    # What stands outside the blocks is on the device during the whole forward.
    outside = sum(op.weights for op in operations if not op.block) / total if total else 0.0
    together = at_once * settings.blocks / blocks if blocks else 1.0
    return min(1.0, outside + (1 - outside) * together)


def observe(
    settings: GroupOffloadSettings, statistics: Statistics, workload: Workload
) -> str | None:
    """Answer a sentence if all weights moved as one."""
    groups = statistics.get("groups")
    if isinstance(groups, int) and groups > 1:
        return None
    return f"group_offload made {groups} group at level {settings.level}: nothing is streamed"


def unfit(case: Case, settings: GroupOffloadSettings) -> str | None:
    """Answer a sentence if more than one block were to move at once on a stream."""
    if not settings.stream or settings.level == "leaf" or settings.blocks == 1:
        return None
    return f"group_offload moves one block at a time on a stream; blocks is {settings.blocks}"


_SOURCE = "diffusers hooks/group_offloading.py"

PASS = Pass(
    name="group_offload",
    family=Family.MEMORY,
    stage=Stage.OFFLOAD,
    fidelity=Fidelity.EXACT,
    source=_SOURCE,
    settings=GroupOffloadSettings,
    owns=("denoiser.place",),
    imports=("accelerate>=0.17",),
    needs=(on_cuda("group_offload", f"{_SOURCE}: moves weights from the host to a device"),),
    avoids=(
        Avoid(
            "compile_blocks",
            "each layer's move breaks the compiled block's graph",
            f"{_SOURCE}: onload_ and offload_ are disabled for the compiler",
            "slower",
            when=lambda case, mine, other: getattr(mine, "level", "") == "leaf",
        ),
        *(
            Avoid(
                name,
                "torchao's weights have ended on two devices when moved on a stream",
                "huggingface/diffusers#13281; pytorch/ao#4088",
                "risky",
                when=lambda case, mine, other: bool(getattr(mine, "stream", False)),
            )
            for name in ("int8_dynamic", "fp8_dynamic", "nvfp4", "int8_weight")
        ),
    ),
    effect=effect,
    apply=apply,
    observe=observe,
    unfit=unfit,
    seeds=({"level": "block", "stream": True}, {"level": "leaf", "stream": True}),
    batch_invariant=True,
)
