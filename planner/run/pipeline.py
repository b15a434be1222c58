"""Loads a pipeline from where the user says it is, and describes what was loaded."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from planner.case.case import Case
from planner.case.model import Model
from planner.case.noun import Noun
from planner.case.workload import Workload
from planner.catalog import reader
from planner.errors import InvalidFile, UsageError, nearest
from planner.hooks.blocks import denoiser_of
from planner.run.devices.base import backend
from planner.run.fingerprint import components_of
from planner.run.traits import guidance_of, traits_of

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class PipelineSource(Noun):
    """Where a pipeline comes from: an embedded model, a folder, a Hub id or a function.

    `path` is the folder that a "module:function" is imported from; `dtype` is what weights are
    loaded as (a function decides that itself); `device` None takes the best there is.
    """

    model: str
    revision: str | None = None
    path: str | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    device: str | None = None


def load_pipeline(source: PipelineSource) -> Any:
    """Load the pipeline onto its device, without progress bars and without remote code.

    Raises `UsageError` for a model that is not there, and `InvalidFile` for a broken folder.
    """
    target = backend(source.device)
    pipeline = _made(source) if _FUNCTION.fullmatch(source.model) else _stored(source)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(target.torch_device)


def model_of(pipeline: Any, source: PipelineSource) -> Model:
    """Return which pipeline this is, down to sampled weights and adapters.

    The revision is the commit that a Hub model was loaded from, else what the source says.
    """
    return Model(
        id=source.model,
        revision=_commit(pipeline) or source.revision,
        pipeline=type(pipeline).__name__,
        components=components_of(pipeline),
        adapters=_adapters(pipeline),
        traits=traits_of(pipeline),
    )


def case_of(
    pipeline: Any, source: PipelineSource, workload: Workload, device: str | None = None
) -> Case:
    """Return the case of a live pipeline: what it is, where it is, and how it will be called.

    `device` is where it will run, if it is not there yet.
    The workload's guidance and dtype are read off the pipeline; its word on them is not taken.
    """
    dtype = str(denoiser_of(pipeline).dtype).removeprefix("torch.")
    found: dict[str, Any] = {"guidance": guidance_of(pipeline, workload.call)}
    if dtype in ("float32", "float16", "bfloat16"):
        found["dtype"] = dtype  # quantized storage (float8, int8) says nothing of the computation
    return Case(
        model=model_of(pipeline, source),
        device=backend(device or str(pipeline.device)).describe(),
        workload=workload.model_copy(update=found),
    )


def _made(source: PipelineSource) -> Any:
    """Import the function and let it make the pipeline."""
    module, _, name = source.model.partition(":")
    if source.path is not None and source.path not in sys.path:
        sys.path.insert(0, source.path)
    try:
        function = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        what = f"cannot import {source.model!r} ({error})"
        way_out = "write module:function, with --path where the module lies"
        raise UsageError(what, value=source.model, way_out=way_out) from error
    pipeline = function()
    if not hasattr(pipeline, "components"):
        what = f"{source.model!r} returned a {type(pipeline).__name__}"
        raise UsageError(what, value=source.model, way_out="return a diffusers pipeline")
    return pipeline


def _stored(source: PipelineSource) -> Any:
    import torch
    from diffusers import DiffusionPipeline

    folder = _folder(source)
    if not (folder / "model_index.json").is_file():
        what, way_out = f"{folder} holds no model_index.json", "give what save_pretrained wrote"
        raise InvalidFile(what, value=str(folder), way_out=way_out)
    try:
        with _without_bars():
            return DiffusionPipeline.from_pretrained(
                folder, dtype=getattr(torch, source.dtype), use_safetensors=True,
                local_files_only=True,
            )  # fmt: skip
    except (OSError, ValueError) as error:
        what, way_out = f"{folder} cannot be loaded ({error})", "download or save it again"
        raise InvalidFile(what, value=str(folder), way_out=way_out) from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Silence the bars of reading weights; those of a download stay, for it may take minutes."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    shown = [log for log in (diffusers_logging, transformers_logging)
             if log.is_progress_bar_enabled()]  # fmt: skip
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()


def _folder(source: PipelineSource) -> Path:
    """Return the folder of a stored pipeline; a Hub id is downloaded first."""
    if source.model in reader.known():
        return reader.folder_of(source.model)
    folder = Path(source.model).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(source.model):
        raise UsageError(
            f"no model is called {source.model!r} ({nearest(source.model, reader.known())})",
            value=source.model,
            way_out="name shapes, a folder, a Hub id like owner/name, or module:function",
        )
    return _downloaded(source)


def _downloaded(source: PipelineSource) -> Path:
    from diffusers import DiffusionPipeline

    try:
        folder = DiffusionPipeline.download(
            source.model, revision=source.revision, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot get {source.model!r} from the Hub ({error})", value=source.model,
            way_out="check name, revision and connection, or give a local folder",
        ) from error  # fmt: skip
    return Path(folder)


def _commit(pipeline: Any) -> str | None:
    """Return the commit in the name of the Hub cache's snapshot folder, if that is its origin."""
    origin = Path(str(pipeline.config.get("_name_or_path") or ""))
    commit = origin.name
    return commit if origin.parent.name == "snapshots" and _COMMIT.fullmatch(commit) else None


def _adapters(pipeline: Any) -> tuple[str, ...]:
    """Return component:name of every loaded adapter; their weights are hashed with the rest."""
    return tuple(sorted(
        f"{name}:{adapter}"
        for name, part in pipeline.components.items()
        for adapter in getattr(part, "peft_config", None) or ()
    ))  # fmt: skip
