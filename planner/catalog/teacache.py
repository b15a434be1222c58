"""Reads the polynomials that others published for TeaCache, and says whose they are.

They belong to one checkpoint each and are not to be trusted unseen: FLUX.2's are the numbers of
Wan 2.1, Lumina has three sets that disagree, and FLUX ran for a while with Wan's at 28 % of hits
where its own give 64 % (NVIDIA/TensorRT-LLM#12007).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from planner import strict_yaml
from planner.case.model import Model
from planner.case.noun import Noun
from planner.errors import InvalidFile

FILE = Path(__file__).parent / "teacache.yaml"

Indicator = Literal["modulated_input", "timestep_embedding", "block_input"]
"""What the polynomial takes the change of: see the head of the file."""


class Threshold(Noun):
    """A published threshold, with the speed-up seen there and the device, where they are said."""

    value: float = Field(gt=0)
    speedup: float | None = Field(None, gt=1)
    device: str | None = None


class Table(Noun):
    """A published polynomial of degree four, highest power first, and the model it belongs to.

    `model` is a catalogued id, or a name of its own for any other; `repositories` are where its
    weights lie on the Hub; `variant` tells several tables of a model apart; `same_as` names the
    model that the numbers were fitted to, where that is another one.
    """

    model: str
    repositories: tuple[str, ...] = Field(min_length=1)
    denoiser: str
    variant: str = ""
    indicator: Indicator
    coefficients: tuple[float, float, float, float, float]
    same_as: str | None = None
    thresholds: tuple[Threshold, ...] = ()
    source: str
    remarks: tuple[str, ...] = ()

    def names(self, model: str) -> bool:
        """Tell whether a catalogued id or a Hub id means this table's checkpoint."""
        return model.lower() in {one.lower() for one in (self.model, *self.repositories)}


class _Tables(Noun):
    """The tables of one model as the file has them."""

    repositories: tuple[str, ...]
    denoiser: str
    tables: tuple[dict[str, object], ...]


@cache
def tables() -> tuple[Table, ...]:
    """Return every published polynomial. Raises `InvalidFile` if the file is damaged."""
    return read_tables(FILE)


def read_tables(file: Path) -> tuple[Table, ...]:
    """Read a file of tables; unknown and missing keys are refused with their names."""
    found: list[Table] = []
    for model, written in strict_yaml.read(file, what="the published polynomials").items():
        try:
            shared = _Tables.model_validate(written)
            whose = {"model": model, "repositories": shared.repositories,
                     "denoiser": shared.denoiser}  # fmt: skip
            found += [Table.model_validate(whose | one) for one in shared.tables]
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            what = f"{file.name}: {model}: {where} is wrong ({first['msg'].lower()})"
            way_out = "restore the file from the release it came with"
            raise InvalidFile(what, value=first["input"], way_out=way_out) from error
    return tuple(found)


def published(model: Model, of: Indicator | None = None) -> Table | None:
    """Return the preferred table that was fitted to this very checkpoint; None where none was.

    The model must be named as the catalogue or the Hub names it, have the denoiser that the table
    is for, and no adapter. A folder may hold anything, so none is known for it. `of` leaves only
    tables of that indicator.
    """
    return next((one for one in _fitted_to(model) if of in (None, one.indicator)), None)


def unpublished(model: Model, of: Indicator) -> str:
    """Say what is wanted and what there is, where `published` finds no table of this indicator."""
    other = next(iter(_fitted_to(model)), None)
    if other is not None:
        wanted, found = (name.replace("_", " ") for name in (of, other.indicator))
        return f"coefficients of the {wanted}; those published for {model.id} are of the {found}"
    adapted = f" with {', '.join(model.adapters)}" if model.adapters else ""
    return f"coefficients of this very checkpoint; none are published for {model.id}{adapted}"


def _fitted_to(model: Model) -> list[Table]:
    if model.adapters:
        return []
    return [one for one in tables()
            if one.names(model.id) and one.denoiser == model.traits.denoiser_class
            and one.same_as is None]  # fmt: skip
