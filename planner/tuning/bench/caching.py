"""The comparison of planner's caches with those of other libraries, from loading to document."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from planner.case.prompts import Prompt, hash_prompts
from planner.case.workload import Workload
from planner.catalog.reader import prompts_for, workload_for
from planner.errors import Interrupted, UsageError
from planner.passes import registry
from planner.passes.base import Family
from planner.plans.graph import build
from planner.run.pipeline import PipelineSource
from planner.trials.ledger import refuse_existing
from planner.tuning.bench.cache_dit import cache_dit_peers, version
from planner.tuning.bench.conclude import conclude
from planner.tuning.bench.desk import Desk
from planner.tuning.bench.document import Comparison
from planner.tuning.bench.journal import Journal
from planner.tuning.bench.method import Method
from planner.tuning.bench.peers import diffusers_peers
from planner.tuning.bench.planned import fewer_steps, planned
from planner.tuning.bench.rig import Rig
from planner.tuning.bench.scale import BUDGET_SECONDS, Scale, estimate
from planner.tuning.bench.stages import run
from planner.tuning.prompts import split_lists
from planner.tuning.session import Progress

MODEL = "shapes"
THREADS = 1
"""Threads of a comparison: the embedded model's operations are too small to share."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is compared, on what, and where the answer goes; `only` names methods, else all."""

    source: PipelineSource
    workload: Workload
    search: tuple[Prompt, ...]
    unseen: tuple[Prompt, ...]
    scale: Scale
    out: Path
    only: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Return where ledger and reference images lie."""
        return self.out / ".planner" / "bench" / "caching"


def embedded(out: Path, scale: Scale | None = None) -> Question:
    """Return the question about the embedded model: its reference call, and a study's prompts."""
    scale = scale or Scale()
    workload, texts = workload_for(MODEL), prompts_for(MODEL, "tune")
    unseen = prompts_for(MODEL, "certify")
    assert workload is not None and texts is not None and unseen is not None
    split = split_lists(texts, unseen, 0)
    return Question(
        source=PipelineSource(model=MODEL, device="cpu"), workload=workload, scale=scale, out=out,
        search=split.search[: scale.searched], unseen=split.certify[: scale.certified],
    )  # fmt: skip


def use_threads() -> None:
    """Compute on as many threads as the comparison is made for; OMP_NUM_THREADS has precedence."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(THREADS)


def compare(
    question: Question, progress: Progress, *, resume: bool = False, fresh: bool = False
) -> Comparison:
    """Measure all that the ledger lacks and return what was found.

    Raises `UsageError` where an earlier comparison lies there and neither `resume` nor `fresh`
    was asked for, and `Interrupted`, with every finished call kept.
    """
    path = question.folder / "ledger.jsonl"
    if not (resume or fresh):  # before anything is loaded
        refuse_existing(path)
    try:
        return _compare(question, path, progress, resume=resume, fresh=fresh)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"stopped; every finished call is kept in {question.folder}",
            way_out="go on with planner bench caching --resume",
        ) from error


def _compare(
    question: Question, path: Path, progress: Progress, *, resume: bool, fresh: bool
) -> Comparison:
    rig = Rig(question.source, question.workload, question.folder / "images")
    methods, peers = methods_for(rig, question.only, progress)
    identity = {
        "bench": "caching", "case": rig.case.model_dump(mode="json"), "peers": peers,
        "scale": question.scale.model_dump(mode="json"),
        "prompts": hash_prompts((*question.search, *question.unseen)),
    }  # fmt: skip
    with closing(Journal.begin(path, identity, resume=resume, fresh=fresh)) as journal:
        if fresh:  # references of another pipeline would be held against this one
            shutil.rmtree(rig.folder, ignore_errors=True)
        desk = Desk(rig, journal, question.scale, question.search, question.unseen, progress)
        seconds = desk.warm()
        _say_estimate(question.scale, methods, seconds, progress)
        run(desk, methods)
        return conclude(desk, methods, peers)


def methods_for(
    rig: Rig, only: Sequence[str], progress: Progress
) -> tuple[list[Method], dict[str, str | None]]:
    """Return every method for a pipeline, ours first, and the versions of the peers' libraries.

    Raises `UsageError` for a name in `only` that no method has.
    """
    graph = build(rig.case)
    for name, why in graph.excluded.items():
        if registry.get(name).family is Family.CACHING:
            progress.say(f"not legal here: {why}")
    found = [*fewer_steps(graph), *planned(graph), *diffusers_peers(), *cache_dit_peers()]
    if version() is None:
        progress.say("cache-dit is not installed: its caches are left out (pip install cache-dit)")
    unknown = set(only) - {method.name for method in found}
    if unknown:
        known = ", ".join(method.name for method in found)
        raise UsageError(f"no method is called {min(unknown)!r}", value=min(unknown),
                         way_out=f"known are {known}")  # fmt: skip
    peers = {"diffusers": metadata.version("diffusers"), "cache-dit": version()}
    return [one for one in found if not only or one.name in only], peers


def _say_estimate(
    scale: Scale, methods: Sequence[Method], seconds: float, progress: Progress
) -> None:
    phases = estimate(scale, methods, seconds)
    total = sum(phases.values())
    parts = ", ".join(f"{name} {value / 60:.0f}" for name, value in phases.items())
    over = f", more than the {BUDGET_SECONDS / 60:.0f} planned" if total > BUDGET_SECONDS else ""
    progress.say(f"an untouched call takes {seconds:.2f} s: {len(methods)} methods take about "
                 f"{total / 60:.0f} minutes{over} ({parts})")  # fmt: skip
