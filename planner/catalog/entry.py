"""The nouns of the catalogue: what planner knows of a model before it is loaded."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from planner.case.noun import Noun, Scalar
from planner.case.workload import Guidance, Workload

Split = Literal["tune", "certify"]
Dtype = Literal["float32", "float16", "bfloat16"]


class Fact(Noun):
    """A sentence about a model, and where it can be checked."""

    says: str
    source: str


class Released(Noun):
    """Distilled weights that somebody published for a model: how many steps, at which guidance."""

    repository: str
    kind: Literal["full", "lora"]
    steps: tuple[int, ...]
    guidance: float
    source: str


class Embedded(Noun):
    """Where an embedded model lies; paths are inside the package.

    `call` is the file of the reference call's arguments, made for `batch_size` images at once;
    `prompts` are the captions of each split.
    """

    folder: str
    call: str
    batch_size: int = 1
    prompts: dict[Split, str]


class Component(Noun):
    """One module of a pipeline: its class, and the config fields that differ from the class's own.

    `uses` names a part of the catalogue that several models share; it is filled in on reading.
    `dtype` is the number format of its weights where it is not the model's. `tokens` is the length
    that an encoder is always fed; without it, it is the workload's text length. `added_tokens` is
    what a template puts before the text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: str
    phase: Literal["encode", "denoise", "decode"]
    uses: str = ""
    library: Literal["diffusers", "transformers"] = "diffusers"
    cls: str = Field("", alias="class")
    config: dict[str, Any] = {}
    dtype: Dtype | None = None
    tokens: int | None = None
    added_tokens: int = 0


class SharedPart(Noun):
    """A component that several models use: an encoder or a VAE, with where its config is from."""

    library: Literal["diffusers", "transformers"] = "diffusers"
    cls: str = Field(alias="class")
    config: dict[str, Any] = {}
    source: str


class Shape(Noun):
    """The size of one pipeline call: pixels, frames, steps, guidance scale, text tokens, batch."""

    height: int = Field(gt=0)
    width: int = Field(gt=0)
    frames: int = Field(1, gt=0)
    steps: int = Field(gt=0)
    guidance: float = Field(0.0, ge=0)
    text_tokens: int = Field(gt=0)
    batch: int = Field(1, gt=0)


class Limits(Noun):
    """The longest text, video and side in pixels that a model takes; None where any is taken."""

    text_tokens: int
    frames: int | None = None
    side: int | None = None


class Experts(Noun):
    """How two experts share the steps: the first runs while the noise level is at the boundary.

    Noise levels are those of a flow schedule with this shift.
    """

    boundary: float = Field(gt=0, lt=1)
    shift: float = Field(gt=0)

    def first(self, steps: int) -> int:
        """Return how many of the steps the first expert (high noise) runs."""
        even = (1 - index / steps for index in range(steps))
        shifted = (self.shift * s / (1 + (self.shift - 1) * s) for s in even)
        return sum(level >= self.boundary for level in shifted)


class Entry(Noun):
    """One model of the catalogue: its components, its reference call, and facts with sources.

    An embedded model's components and call are in its folder; any other model has both here.
    `published` holds the names that published measurements use for it. `call` are further arguments
    of the reference call; `guidance_argument` is what the pipeline calls its guidance scale.
    `image_conditioned` says that a first frame is given and encoded by the VAE.
    """

    id: str
    title: str
    pipeline: str
    licence: str
    guidance: Guidance
    dtype: Dtype
    facts: tuple[Fact, ...]
    repository: str = ""
    published: tuple[str, ...] = ()
    embedded: Embedded | None = None
    components: tuple[Component, ...] = ()
    defaults: Shape | None = None
    limits: Limits | None = None
    experts: Experts | None = None
    guidance_argument: str = "guidance_scale"
    image_conditioned: bool = False
    call: dict[str, Scalar] = {}
    distilled: tuple[Released, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> Entry:
        if self.embedded is None and not (self.components and self.defaults and self.limits):
            raise ValueError("a model needs embedded, or components, defaults and limits")
        return self

    @property
    def workload(self) -> Workload | None:
        """Return the reference call as diffusers' arguments; None for an embedded model."""
        if self.defaults is None:
            return None
        shape = self.defaults
        call: dict[str, Scalar] = {
            "height": shape.height, "width": shape.width, "num_inference_steps": shape.steps,
            self.guidance_argument: shape.guidance,
        }  # fmt: skip
        if shape.frames > 1:
            call["num_frames"] = shape.frames
        return Workload(
            call=call | self.call, guidance=self.guidance, batch_size=shape.batch,
            dtype=self.dtype,
        )  # fmt: skip
