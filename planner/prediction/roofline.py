"""Prices work on a device: what bounds each operation, and what the host and the link add.

An operation takes the larger of its arithmetic and its traffic, plus the time in which a kernel
starts and drains. A forward takes the larger of its operations and of the host's launches. Rounded
corners replace the hard maximum, since neither side ever overlaps the other perfectly.
Source: Williams, Waterman, Patterson, Roofline, CACM 52(4), 2009.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.case.noun import Noun
from planner.case.work import Operation, Phase, Work
from planner.errors import UsageError

Columns = NDArray[np.float64]
Index = NDArray[np.int64]

KERNELS = ("", "math", "flash2", "flash3", "cudnn", "sage")
"""Attention kernels; the first is what torch's scaled_dot_product_attention chooses."""

DTYPES = ("float32", "tf32", "float16", "bfloat16", "int8", "float8", "float4")
"""Types that are multiplied; torch's names begin with them (float8_e4m3fn)."""

_PRODUCTS = ("linear", "convolution", "attention")
_PHASES = ("encode", "denoise", "decode")
_CORNER = 4.0
"""Power of the rounded maximum: two equal sides take 1.19 times as long as one."""


class Speeds(Noun):
    """How fast a device is, in FLOP/s, B/s and seconds.

    products: matrix products by type. convolution, attention: share of that speed which they reach,
    the latter by kernel. bandwidth: what operations move; cached: how many times that where their
    tensors fit the `cache` (bytes). launch: host seconds a launch. ramp: device seconds in which a
    kernel starts and drains. call, step: host seconds of a pipeline call and of a denoiser call
    in which the device waits, its queue run empty between two steps. link: host to device.
    """

    products: dict[str, float]
    convolution: float
    attention: dict[str, float]
    bandwidth: float
    cached: float
    cache: float
    launch: float
    ramp: float
    call: float
    step: float
    link: float

    def row(self) -> Columns:
        """Return the speeds as one row of columns; missing units are NaN.

        Where nothing shortens products to TF32, as on a CPU, they are multiplied in float32.
        """
        known = {"tf32": self.products.get("float32", np.nan)} | self.products
        products = [known.get(name, np.nan) for name in DTYPES]
        attention = [self.attention.get(name, np.nan) for name in KERNELS]
        rest = (self.convolution, self.bandwidth, self.cached, self.cache, self.launch, self.ramp,
                self.call, self.step, self.link)  # fmt: skip
        return np.array([*products, *attention, *rest], np.float64)


@dataclass(frozen=True)
class Table:
    """The operations of many works as columns, so that all are priced at once."""

    phase: Index
    kind: Index
    dtype: Index
    kernel: Index
    flops: Columns
    bytes: Columns
    launches: Columns
    phase_work: Index
    phase_name: Index
    calls: Columns
    free: Columns
    transfers: Columns
    overlapped: NDArray[np.bool_]

    @staticmethod
    def of(works: Sequence[Work]) -> Table:
        """Return the columns of works; operations of a phase that cost the same are one row."""
        operations: list[tuple[Any, ...]] = []
        phases: list[tuple[Any, ...]] = []
        for index, work in enumerate(works):
            for phase in work.phases:
                operations += [(len(phases), *row) for row in _grouped(phase)]
                phases.append((index, _PHASES.index(phase.name), phase.calls,
                               0.0 if phase.captured else 1.0,
                               phase.transfers, phase.overlapped))  # fmt: skip
        which = np.array([row[:4] for row in operations], np.int64).reshape(-1, 4)
        much = np.array([row[4:] for row in operations], np.float64).reshape(-1, 3)
        places = np.array([row[:2] for row in phases], np.int64).reshape(-1, 2)
        rest = np.array([row[2:] for row in phases], np.float64).reshape(-1, 4)
        return Table(
            phase=which[:, 0], kind=which[:, 1], dtype=which[:, 2], kernel=which[:, 3],
            flops=much[:, 0], bytes=much[:, 1], launches=much[:, 2],
            phase_work=places[:, 0], phase_name=places[:, 1],
            calls=rest[:, 0], free=rest[:, 1], transfers=rest[:, 2], overlapped=rest[:, 3] > 0,
        )  # fmt: skip


def _grouped(phase: Phase) -> list[tuple[Any, ...]]:
    """Return (kind, dtype, kernel, flops, bytes, launches) of the phase's distinct operations."""
    sums: dict[tuple[Any, ...], Columns] = defaultdict(lambda: np.zeros(3))
    for op in phase.operations:
        kind = _PRODUCTS.index(op.kind) if op.kind in _PRODUCTS else len(_PRODUCTS)
        each = max(1, op.launches)
        key = (kind, dtype_of(op), KERNELS.index(op.kernel) if op.kernel in KERNELS else 0,
               round(op.flops / each), round(op.bytes / each))  # fmt: skip
        sums[key] += op.share * np.array([op.flops, op.bytes, each])
    return [(*key[:3], *total) for key, total in sums.items()]


def dtype_of(op: Operation) -> int:
    """Return the place in DTYPES of what an operation multiplies; other types count as float32.

    Convolutions in float32 multiply in TF32 unless torch is told otherwise.
    """
    if op.dtype == "float32" and op.kind == "convolution":
        return DTYPES.index("tf32")
    for place, name in enumerate(DTYPES):
        if op.dtype.startswith(name):
            return place
    return 0


@dataclass(frozen=True)
class Seconds:
    """What works take: seconds of each pipeline call in all and by phase name."""

    total: Columns
    by_phase: dict[str, Columns]


def price(table: Table, speeds: Sequence[Speeds] | Columns) -> Seconds:
    """Return the seconds of each work of a table; `speeds` has one entry a work.

    Raises `UsageError` where an operation's type has no unit on its device.
    """
    rows = speeds if isinstance(speeds, np.ndarray) else np.stack([s.row() for s in speeds])
    types, kernels = len(DTYPES), len(KERNELS)
    products, attention = rows[:, :types], rows[:, types : types + kernels]
    rest = rows[:, types + kernels :].T
    convolution, bandwidth, cached, cache, launch, ramp, call, step, link = rest
    work = table.phase_work[table.phase]
    speed = products[work, table.dtype]
    speed = np.where(table.kind == 1, speed * convolution[work], speed)
    speed = np.where(table.kind == 2, speed * attention[work, table.kernel], speed)
    compute = np.where(table.kind < len(_PRODUCTS), table.flops / speed, 0.0)
    _refuse_missing(compute, table)
    each = table.bytes / np.maximum(table.launches, 1e-9) / cache[work]
    moving = bandwidth[work] * (1 + (cached[work] - 1) / (1 + each**2))
    busy = _larger(compute, table.bytes / moving) + table.launches * ramp[work]
    count = len(table.calls)
    device = _summed(table.phase, busy, count)
    host = _summed(table.phase, table.launches, count) * table.free * launch[table.phase_work]
    inside = table.calls * _larger(device, host)
    inside += np.where(table.phase_name == 1, table.calls * step[table.phase_work], 0.0)
    moved = table.transfers / link[table.phase_work]
    taken = np.where(table.overlapped, _larger(inside, moved), inside + moved)
    by_phase = {
        name: _summed(table.phase_work, np.where(table.phase_name == place, taken, 0.0), len(rows))
        for place, name in enumerate(_PHASES)
    }
    return Seconds(call + np.sum(list(by_phase.values()), 0), by_phase)


def _summed(index: Index, values: Columns, count: int) -> Columns:
    return np.asarray(np.bincount(index, values, count), np.float64)


def _larger(a: Columns, b: Columns) -> Columns:
    """Return the larger of both with a rounded corner."""
    high, low = np.maximum(a, b), np.minimum(a, b)
    part = np.divide(low, high, out=np.zeros_like(high), where=high > 0)
    out: Columns = high * (1 + part**_CORNER) ** (1 / _CORNER)
    return out


def _refuse_missing(compute: Columns, table: Table) -> None:
    missing = np.flatnonzero(np.isnan(compute))
    if len(missing):
        name = DTYPES[table.dtype[missing[0]]]
        raise UsageError(f"this device has no unit for {name} products", value=name,
                         way_out="ask for --dtype float16, or a newer device")  # fmt: skip
