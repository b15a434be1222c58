"""The case of a model on a device that is not here: classes and shapes, no weights, no download."""

from __future__ import annotations

from typing import Any

from planner.case.case import Case
from planner.case.model import Component, Model
from planner.case.noun import Scalar, digest
from planner.catalog.devices import Card
from planner.catalog.entry import Entry
from planner.errors import InvalidFile
from planner.prediction.components import build, class_of
from planner.prediction.meta import entry_for, in_format, shape_of
from planner.run.devices.base import library_versions
from planner.run.fingerprint import config_of
from planner.run.traits import traits_of


def case_on(model: str, card: Card, dtype: str | None = None, **sizes: Scalar) -> Case:
    """Return the case of a catalogued model, or of a diffusers folder, on a catalogued device.

    `dtype` is the number format, else the model's own; `sizes` are height, width, frames, steps,
    guidance, text_tokens and batch. The libraries are taken to be those that are installed here.
    Weights are unknown: no policy but a predicted one fits the case.
    Raises `UsageError` for an unknown model or size, `InvalidFile` for a broken config.
    """
    entry = in_format(entry_for(model), dtype)
    entry = entry.model_copy(update={"defaults": shape_of(entry, **sizes)})
    workload = entry.workload
    if workload is None:
        raise InvalidFile(f"{entry.id} has no default call", value=entry.id,
                          way_out="give its catalogue entry defaults")  # fmt: skip
    modules = {part.name: build(part, entry.dtype, entry.id) for part in entry.components}
    return Case(
        model=Model(
            id=entry.id, pipeline=entry.pipeline,
            components={name: _component(module) for name, module in modules.items()},
            traits=traits_of(_bare(entry, modules)),
        ),
        device=card.device(library_versions()),
        workload=workload,
    )  # fmt: skip


def _component(module: Any) -> Component:
    return Component(class_name=type(module).__name__, config=digest(config_of(module)))


def _bare(entry: Entry, modules: dict[str, Any]) -> Any:
    """Return an object of the pipeline's class with its modules and nothing else.

    Traits are read from classes, so that neither tokenizers nor schedulers need to be there.
    """
    kind = class_of("diffusers", entry.pipeline, entry.id)
    pipeline = object.__new__(kind)
    for name, module in modules.items():
        object.__setattr__(pipeline, name, module)
    return pipeline
