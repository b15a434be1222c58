"""Reads the catalogue's devices: what a card can do, from datasheets and others' measurements."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import ValidationError

from planner import strict_yaml
from planner.case.device import Device
from planner.case.noun import Noun
from planner.errors import InvalidFile, UsageError, nearest

_FILE = Path(__file__).parent / "gpus.yaml"


class Peaks(Noun):
    """Dense TFLOPS (TOPS for int8) by the type that is multiplied; None: no such unit."""

    float32: float | None = None
    float16: float | None = None
    bfloat16: float | None = None
    tf32: float | None = None
    float8: float | None = None
    int8: float | None = None
    float4: float | None = None


class Card(Noun):
    """A device that a plan can target: rated peaks, memory (GB), bandwidth (GB/s), price ($/h).

    `cache_mb` is its last level of cache, `gemm` the best matrix product that somebody measured.
    `capability` is CUDA's;
    other vendors' cards have a `chip` instead.
    """

    id: str
    name: str
    architecture: str
    capability: tuple[int, int] | None = None
    chip: str | None = None
    memory_gb: float
    bandwidth: float
    cache_mb: float
    peaks: Peaks
    gemm: Peaks = Peaks()
    gemm_source: str | None = None
    watts: float
    price: float | None = None
    price_source: str | None = None
    source: str
    note: str = ""

    @property
    def memory_bytes(self) -> int:
        """Return the card's memory: datasheets say GB where GiB is meant."""
        return int(self.memory_gb * 2**30)

    def device(self, libraries: dict[str, str]) -> Device:
        """Return the card as the device of a case, with the libraries that are to run there."""
        return Device(
            kind="cuda", name=self.name, capability=self.capability,
            memory_bytes=self.memory_bytes, libraries=libraries,
        )  # fmt: skip


@cache
def cards() -> dict[str, Card]:
    """Return every catalogued device by its id. Raises `InvalidFile` for a damaged catalogue."""
    found = {}
    for name, values in strict_yaml.read(_FILE, what="the device catalogue").items():
        try:
            found[name] = Card.model_validate({"id": name, **values})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            what = f"{_FILE.name}: {name}: {where} is wrong ({first['msg'].lower()})"
            way_out = "restore the file from the release it came with"
            raise InvalidFile(what, value=first["input"], way_out=way_out) from error
    return found


def card(name: str) -> Card:
    """Return a device by id or by name, however it is written: h100-sxm, H100-SXM, RTX 4090.

    Raises `UsageError` for an unknown one, with the nearest ids.
    """
    known = {_plain(one.id): one for one in cards().values()}
    found = known.get(_plain(name))
    if found is None:
        starts = [one.id for key, one in known.items() if key.startswith(_plain(name))]
        way_out = f"write one of {', '.join(starts)}" if starts else nearest(name, cards())
        raise UsageError(f"the catalogue has no device {name!r}", value=name, way_out=way_out)
    return found


def card_of(device: Device) -> Card | None:
    """Return the catalogued card that a CUDA device at hand is, None where it is none.

    Drivers write names as they like ("NVIDIA H100 80GB HBM3"): the longest chip name wins that
    stands in it, then the nearest memory, then whether both say PCIe.
    """
    name = _plain(device.name)
    same = [
        one for one in cards().values()
        if device.kind == "cuda" and one.capability == device.capability and _chip(one) in name
    ]  # fmt: skip

    def unlike(one: Card) -> tuple[int, float, bool]:
        memory = round(abs(one.memory_bytes / device.memory_bytes - 1), 1)
        return (-len(_chip(one)), memory, ("pcie" in one.id) != ("pcie" in name))

    return min(same, key=unlike, default=None)


def _chip(card: Card) -> str:
    """Return a card's name without form and memory, which drivers write otherwise."""
    forms = ("sxm", "pcie", "nvl")
    words = card.id.split("-")
    return "".join(word for word in words if word not in forms and not word.endswith("gb"))


def _plain(name: str) -> str:
    return "".join(c for c in name.lower().removeprefix("nvidia") if c.isalnum())
