"""Reads what others measured of a pass's images: published anchors, for a model and for others.

Nothing is predicted from them: they are shown as ranges with their sources.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from pydantic import ValidationError

from planner import strict_yaml
from planner.case.noun import Noun
from planner.errors import InvalidFile

FILE = Path(__file__).parent / "quality.yaml"

Metric = Literal["LPIPS", "LPIPS (VGG)", "PSNR", "ImageReward"]
_SHOWN_SOURCES = 3


class Anchor(Noun):
    """One published figure: what a technique did to a model's images, at which setting.

    `model` is a catalogued id, or the source's own name for any other. `untouched` is what the
    untouched pipeline scores, where the metric needs no reference. `read` says how much of the
    source the figure was read from: its own tables, another's table of it, or its abstract.
    """

    technique: str
    model: str
    setting: str
    metric: Metric
    value: float
    untouched: float | None = None
    speedup: float | None = None
    source: str
    read: Literal["primary", "secondary", "abstract"] = "primary"


class Published(Noun):
    """The range of anchors of one technique in one metric, whose models, and where it is from.

    `same_model` says that all are of the model that was asked for. `speedup` is the range that the
    sources saw with it, `untouched` that of the untouched pipelines; None where one does not say.
    """

    technique: str
    metric: Metric
    low: float
    high: float
    same_model: bool
    models: tuple[str, ...]
    sources: tuple[str, ...]
    speedup: tuple[float, float] | None = None
    untouched: tuple[float, float] | None = None

    def __str__(self) -> str:
        """Return the range in words, as `planner plan` shows it."""
        where = "on" if self.same_model else "on other models:"
        reference = f" (untouched {_range(self.untouched)})" if self.untouched else ""
        faster = f" at {_range(self.speedup)}×" if self.speedup else ""
        more = len(self.sources) - _SHOWN_SOURCES
        rest = f" and {more} more" if more > 0 else ""
        return (f"{self.metric} {_range((self.low, self.high))}{reference} for {self.technique} "
                f"{where} {', '.join(self.models)}{faster} "
                f"[{'; '.join(self.sources[:_SHOWN_SOURCES])}{rest}]")  # fmt: skip


@cache
def anchors() -> tuple[Anchor, ...]:
    """Return every published figure of the catalogue. Raises `InvalidFile` if it is damaged."""
    return read_anchors(FILE)


def read_anchors(file: Path) -> tuple[Anchor, ...]:
    """Read a file of anchors; unknown and missing keys are refused with their names."""
    found = []
    for technique, rows in strict_yaml.read(file, what="the published anchors").items():
        for row in rows:
            try:
                found.append(Anchor.model_validate({"technique": technique, **row}))
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                what = f"{file.name}: {technique}: {where} is wrong ({first['msg'].lower()})"
                way_out = "restore the file from the release it came with"
                raise InvalidFile(what, value=first["input"], way_out=way_out) from error
    return tuple(found)


def published(technique: str, model: str) -> tuple[Published, ...]:
    """Return a technique's ranges by metric: of this model, or of others where it has none."""
    known = [one for one in anchors() if one.technique == technique]
    own = [one for one in known if one.model == model]
    chosen = own or known
    grouped = ([one for one in chosen if one.metric == metric] for metric in get_args(Metric))
    return tuple(_published(group, bool(own)) for group in grouped if group)


def sentence(techniques: Iterable[str], model: str) -> str:
    """Return what is published of techniques in words: all of a model's own, else the first metric.

    A technique without a figure is named as unknown.
    """
    shown, unknown = [], []
    for name in techniques:
        found = published(name, model)
        if not found:
            unknown.append(name)
        shown += [str(one) for one in found if one.same_model] or [str(one) for one in found[:1]]
    parts = [f"published: {', '.join(shown)}"] if shown else []
    return "; ".join(parts + ([f"nothing published for {', '.join(unknown)}"] if unknown else []))


def _published(group: list[Anchor], own: bool) -> Published:
    """Return the range of anchors in one metric; a metric of its own is never mixed with others."""
    values = [one.value for one in group]
    return Published(
        technique=group[0].technique, metric=group[0].metric,
        low=min(values), high=max(values), same_model=own,
        models=tuple(dict.fromkeys(one.model for one in group)),
        sources=tuple(dict.fromkeys(one.source for one in group)),
        speedup=_ends([one.speedup for one in group]),
        untouched=_ends([one.untouched for one in group]),
    )  # fmt: skip


def _ends(values: list[float | None]) -> tuple[float, float] | None:
    """Return the range of values; None where one is missing, which would belong in it."""
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if len(known) == len(values) else None


def _range(ends: tuple[float, float]) -> str:
    low, high = (f"{end:.3g}" for end in ends)
    return low if low == high else f"{low} to {high}"
