"""What is compared: one family of settings along one knob, and how it goes on a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

from planner.case.noun import Scalar
from planner.case.prompts import Prompt
from planner.passes.base import Domain
from planner.tuning.bench.rig import Rig

Side = Literal["ours", "peer", "steps"]
"""Whose it is: a cache of planner's own, one of another library, or fewer steps."""

Learned = dict[str, Any]
"""What a method's calibration returned, as plain JSON."""

On = Callable[[Rig, Scalar, Learned], AbstractContextManager[Mapping[str, Any]]]
"""Puts a setting on for a `with` block, which gets the arguments that a call needs."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A cache, or fewer steps, with one main knob from mild to bold.

    `domain` and `default` are the knob's; `learn` calibrates on some prompts, once for all
    methods with the same `lesson`; `recipe` says of a value what to write down so that the
    setting can be had again; `note` is what a reader must know to judge the figures.
    """

    name: str
    side: Side
    source: str
    knob: str
    domain: Domain
    default: Scalar
    on: On
    learn: Callable[[Rig, tuple[Prompt, ...]], Learned] | None = None
    lesson: str = ""
    recipe: Callable[[Scalar, Learned], dict[str, Any]]
    note: str = ""

    def setting(self, value: Scalar) -> str:
        """Return a setting as one reads it."""
        shown = f"{value:.3g}" if isinstance(value, float) else str(value)
        return f"{self.name}, {self.knob} {shown}"
