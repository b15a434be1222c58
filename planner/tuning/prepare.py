"""From options and a search file to a request; and the dry run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from planner.case.goal import Goal
from planner.case.noun import Scalar
from planner.case.prompts import hash_prompts
from planner.case.search_file import read_search
from planner.case.workload import Workload
from planner.catalog.reader import known as known_models
from planner.catalog.reader import prompts_for, workload_for
from planner.errors import UsageError, nearest
from planner.plans.graph import Graph, build
from planner.run.devices.base import backend
from planner.run.pipeline import PipelineSource
from planner.trials.supervisor import Supervisor
from planner.tuning.estimate import estimate
from planner.tuning.experts import expert_plans
from planner.tuning.prompts import read_prompts, split_file, split_lists, unseen_needed
from planner.tuning.request import SEARCH_PROMPTS, Split, TuneRequest, goal_of
from planner.tuning.session import Progress
from planner.tuning.space import check_narrowing, space
from planner.units import parse_seconds

OPTIONS = frozenset({
    "model", "budget", "vram", "max_lpips", "prefer", "prompts", "steps", "height", "width",
    "guidance", "batch", "dtype", "device", "revision", "path", "with_passes", "without_passes",
    "search_time", "trials", "sampler", "out", "seed", "no_certify", "domains",
})  # fmt: skip
"""What `planner tune` and `planner.tune` take, besides what they do with the study."""

_CALL = {"steps": "num_inference_steps", "height": "height", "width": "width"}


def prepare(
    options: Mapping[str, Any], search_file: Path | None = None, command: str = ""
) -> TuneRequest:
    """Make a request from options; they win over the search file, which wins over defaults.

    Raises `UsageError` or `InvalidFile` for anything that cannot be read or is missing.
    """
    asked = merged(options, search_file)
    source, workload = reference(asked)
    model = source.model
    seed = asked.get("seed") or 0
    certify = not asked.get("no_certify", False)
    check_narrowing(asked.get("domains") or {})
    split = split_of(model, asked, seed, certify=certify, batch=workload.batch_size)
    prompts = hash_prompts((*split.search, *split.certify))
    return TuneRequest(
        source=source, workload=workload.model_copy(update={"prompts": prompts}),
        goal=_goal(asked), split=split, with_passes=tuple(asked.get("with_passes") or ()),
        without_passes=tuple(asked.get("without_passes") or ()),
        domains=asked.get("domains") or {},
        search_seconds=parse_seconds(asked.get("search_time") or "15m"),
        trials=asked.get("trials"), sampler=asked.get("sampler") or "gp", seed=seed,
        certify=certify, out=Path(asked.get("out") or "."), command=command,
    )  # fmt: skip


def reference(asked: Mapping[str, Any]) -> tuple[PipelineSource, Workload]:
    """Return which pipeline is asked for and its reference call: the catalogue's, overridden.

    Raises `UsageError` where nothing says how many steps the call takes.
    """
    model = asked.get("model") or "shapes"
    workload = _workload(model, asked)
    source = PipelineSource(
        model=model, revision=asked.get("revision"), path=asked.get("path"),
        dtype=workload.dtype, device=asked.get("device"),
    )  # fmt: skip
    return source, workload


def dry_run(request: TuneRequest, progress: Progress) -> dict[str, Any]:
    """Say what a search would do: passes, clashes, stacks, variables, first plans, seconds.

    Loads the pipeline and times one untouched call; writes nothing.
    """
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        images, log = Path(scratch) / "images", Path(scratch) / "worker.log"
        with Supervisor(request.source, request.workload, images, log=log) as worker:
            size = worker.case.workload.batch_size
            call = request.split.search[:size]
            worker.render("baseline", call, 3600.0, save=False)
            seconds = worker.render("baseline", call, 3600.0, save=False)[0].seconds
            case = worker.case
    graph = build(case, with_=request.with_passes, without=request.without_passes)
    variables = space(graph, case, request.domains)
    first = expert_plans(request, graph, request.goal, variables, seconds)
    found = {
        "case": case.digest(),
        "legal": [one.name for one in graph.legal],
        "excluded": dict(graph.excluded),
        "clashes": [clash._asdict() for clash in graph.clashes],
        "stacks": graph.stacks(),
        "space": {
            name: domain.model_dump(exclude_defaults=True) for name, domain in variables.items()
        },
        "seeds": [str(plan) for plan in first if plan.passes][: request.trials],
        "estimate": estimate(request, seconds, size),
    }
    _say(found, graph, progress)
    return found


def merged(options: Mapping[str, Any], search_file: Path | None = None) -> dict[str, Any]:
    """Lay given options over a search file's values; tuples of passes add up.

    Raises `UsageError` or `InvalidFile` as `read_search` does.
    """
    for name in options:
        if name not in OPTIONS:
            raise UsageError(f"tune has no option {name!r}", value=name,
                             way_out=nearest(name, OPTIONS))  # fmt: skip
    given = {k: v for k, v in options.items() if v is not None and v != () and v is not False}
    if search_file is None:
        return given
    file = read_search(search_file)
    sums = {"with_passes": file.with_passes, "without_passes": file.without_passes}
    stored = file.model_dump(exclude_unset=True, exclude={*sums, "workload"})
    stored["domains"] = file.narrowing
    stored |= file.workload.model_dump(exclude_none=True)
    for name, passes in sums.items():
        given[name] = tuple(dict.fromkeys((*passes, *given.get(name, ()))))
    return stored | given


def _goal(asked: Mapping[str, Any]) -> Goal:
    cap = asked.get("max_lpips")
    return goal_of(asked.get("budget"), asked.get("vram"), None if cap is None else str(cap),
                   asked.get("prefer"))  # fmt: skip


def _workload(model: str, asked: Mapping[str, Any]) -> Workload:
    known = workload_for(model)
    call: dict[str, Scalar] = (dict(known.call) if known else {}) | dict(asked.get("call") or {})
    for option, name in _CALL.items():
        if asked.get(option) is not None:
            call[name] = asked[option]
    if "num_inference_steps" not in call:
        raise UsageError(
            f"the reference call of {model!r} is unknown", value=model,
            way_out=f"{nearest(model, known_models())} A model of your own needs at least --steps",
        )  # fmt: skip
    if asked.get("guidance") is not None:
        name = "true_cfg_scale" if "true_cfg_scale" in call else "guidance_scale"
        call[name] = asked["guidance"]
    base = known or Workload(call=call, dtype=_usual_dtype(asked.get("device")))
    update = {
        key: asked[option]
        for key, option in (("batch_size", "batch"), ("dtype", "dtype"))
        if asked.get(option) is not None
    }
    if update.get("batch_size", 1) < 1:
        raise UsageError(f"a batch of {update['batch_size']} is empty",
                         value=update["batch_size"], way_out="give --batch 1 or more")  # fmt: skip
    return base.model_copy(update={"call": call} | update)


def _usual_dtype(device: str | None) -> Literal["float32", "bfloat16"]:
    """Return what models are served in: bfloat16 on an accelerator, float32 on a CPU."""
    return "float32" if backend(device).torch_device == "cpu" else "bfloat16"


def split_of(
    model: str, asked: Mapping[str, Any], seed: int, *, certify: bool, batch: int
) -> Split:
    """Return the prompts of a search, and those kept for its certificate where one is wanted.

    Raises `UsageError` where none or too few are known.
    """
    if asked.get("prompts") is not None:
        texts = read_prompts(Path(asked["prompts"]))
        return split_file(texts, seed, certify=certify, batch=batch)
    search, unseen = prompts_for(model, "tune"), prompts_for(model, "certify")
    if search is None or unseen is None:
        raise UsageError(f"no prompts are known for {model}", value=model,
                         way_out="give --prompts FILE with one prompt a line")  # fmt: skip
    needed = unseen_needed(batch)
    if certify and len(unseen) < needed:
        raise UsageError(
            f"{model} has {len(unseen)} unseen prompts, too few to certify batches of {batch}",
            value=batch,
            way_out=f"give --prompts FILE with {SEARCH_PROMPTS + needed}, a smaller --batch, or "
            "--no-certify",
        )
    return split_lists(search, unseen, seed, batch=batch)


def _say(found: Mapping[str, Any], graph: Graph, progress: Progress) -> None:
    progress.say("legal here: " + ", ".join(found["legal"]))
    for why in graph.exclusions:
        progress.say(f"not legal: {why}")
    for clash in graph.clashes:
        progress.say(clash.worded)
    for stack in found["stacks"]:
        progress.say("stack: " + " > ".join(stack))
    for plan in found["seeds"]:
        progress.say(f"seed: {plan}")
    e = found["estimate"]
    progress.say(
        f"untouched call {e['untouched_call_seconds']:.2f} s; about {e['trials_that_fit']} trials "
        f"of {e['trial_seconds']:.0f} s fit beside the baseline ({e['baseline_seconds']:.0f} s) "
        f"and the certificate ({e['certificate_seconds']:.0f} s)"
    )
