"""Measures in under a minute what a device can do, for the roofline that predicts plans on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from pydantic import ValidationError

from planner.case.device import Device
from planner.case.noun import Noun
from planner.errors import InvalidFile
from planner.prediction.roofline import Speeds
from planner.run.devices.base import Backend

_SECONDS = 2.0
"""What one figure may take."""

_SIDES = {"cpu": 1024, "cuda": 8192}
_BYTES = {"cpu": 2**22, "cuda": 2**28}
"""Elements of the traffic test: on a CPU, activations of the size that stays in its caches."""


class Calibration(Noun):
    """What was measured on a device: its speeds, and the device that they hold for."""

    device: Device
    speeds: Speeds


def file_of(device: Device, root: Path) -> Path:
    """Return where a device's calibration is kept under a study root such as .planner."""
    kept = device.model_copy(update={"libraries": {}})
    return root / "devices" / f"{device.slug}-{kept.digest()[:12]}.json"


def stored(device: Device, root: Path) -> Calibration | None:
    """Return the calibration of this very device, None where there is none.

    Raises `InvalidFile` for a damaged file.
    """
    file = file_of(device, root)
    if not file.exists():
        return None
    try:
        return Calibration.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (ValidationError, ValueError) as error:
        way_out = "delete it and run planner doctor --calibrate"
        raise InvalidFile(f"{file} is damaged", value=str(file), way_out=way_out) from error


def store(found: Calibration, root: Path) -> Path:
    """Write a calibration and return its file."""
    file = file_of(found.device, root)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(found.model_dump_json(indent=2) + "\n", encoding="utf-8")
    part.replace(file)
    return file


def calibrate(backend: Backend) -> Calibration:
    """Measure products by type, convolution, attention, traffic and the cost of a launch."""
    device = backend.describe()
    bench = _Bench(backend, device)
    products = bench.products()
    ramp, launch = bench.starts()
    best = products.get("bfloat16") or products["float32"]
    dtype = "bfloat16" if "bfloat16" in products else "float32"
    return Calibration(
        device=device,
        speeds=Speeds(
            products=products,
            convolution=bench.convolution(dtype) / best,
            attention={"": bench.attention(dtype) / best},
            bandwidth=bench.traffic(), cached=1.0, cache=1.0,
            launch=launch, ramp=ramp, call=0.0, step=0.0, link=bench.link(),
        ),
    )  # fmt: skip


class _Bench:
    """Runs small kernels on one device and returns the median of their speeds."""

    def __init__(self, backend: Backend, device: Device) -> None:
        import torch

        self._torch, self._backend, self._device = torch, backend, device
        self._where, self._cpu = backend.torch_device, device.kind != "cuda"
        self._side = _SIDES["cpu" if self._cpu else "cuda"]

    def _seconds(self, call: Callable[[], Any], inner: int = 1) -> float:
        """Return the median seconds of a call, from as many rounds as fit."""
        return self._by_turns([call], inner)[0]

    def _by_turns(self, calls: Sequence[Callable[[], Any]], inner: int = 1) -> list[float]:
        """Return the median seconds of each of some calls, all of them in every round."""
        with self._torch.inference_mode():
            for call in calls:
                call()
            self._backend.synchronize()
            rounds: list[list[float]] = []
            begun = perf_counter()
            while len(rounds) < 5 or (perf_counter() - begun < _SECONDS and len(rounds) < 200):
                rounds.append([self._once(call, inner) for call in calls])
        return [median(taken) for taken in zip(*rounds, strict=True)]

    def _once(self, call: Callable[[], Any], inner: int) -> float:
        start = perf_counter()
        for _ in range(inner):
            call()
        self._backend.synchronize()
        return (perf_counter() - start) / inner

    def _random(self, *shape: int, dtype: str = "float32") -> Any:
        kind = getattr(self._torch, dtype)
        return self._torch.randn(*shape, device=self._where).to(kind)

    def products(self) -> dict[str, float]:
        """Return FLOP/s of large products by type; a type without a unit is left out."""
        return self._layers() if self._cpu else self._large() | self._tf32() | self._float8()

    def _large(self) -> dict[str, float]:
        """Return the speed of square products on a GPU."""
        side, found = self._side, {}
        for dtype in ("float32", "float16", "bfloat16"):
            a, b = self._random(side, side, dtype=dtype), self._random(side, side, dtype=dtype)
            found[dtype] = 2 * side**3 / self._seconds(partial(self._torch.mm, a, b))
        return found

    def _tf32(self) -> dict[str, float]:
        """Return the speed of float32 products where torch may shorten them, as convolutions do."""
        side, before = self._side, self._torch.get_float32_matmul_precision()
        a, b = self._random(side, side), self._random(side, side)
        self._torch.set_float32_matmul_precision("high")
        try:
            return {"tf32": 2 * side**3 / self._seconds(partial(self._torch.mm, a, b))}
        finally:
            self._torch.set_float32_matmul_precision(before)

    def _layers(self) -> dict[str, float]:
        """Return the speed of linear layers on a CPU, in 8 bit by the kernels that the pass uses.

        Both are timed by turns: what counts is how many times as fast one is as the other, and a
        busy machine must not slow down one alone.
        """
        from planner.hooks.integer import engine_for, integer_linear

        rows, wide, linear = 128, self._side, self._torch.nn.Linear
        layers = {"float32": linear(wide, wide).requires_grad_(False)}
        if any(feature.startswith("int8:") for feature in self._device.features):
            layers["int8"] = linear(wide, wide).requires_grad_(False)
            vars(layers["int8"]).update(integer_linear(layers["int8"], engine_for("cpu")))
        x = self._random(rows, wide)
        taken = self._by_turns([partial(layer, x) for layer in layers.values()])
        return {name: 2 * rows * wide**2 / each for name, each in zip(layers, taken, strict=True)}

    def _float8(self) -> dict[str, float]:
        """Return the speed of scaled FP8 products where the device has them."""
        if (self._device.capability or (0, 0)) < (8, 9):
            return {}
        torch, side = self._torch, self._side
        a = self._random(side, side).to(torch.float8_e4m3fn)
        b = self._random(side, side).to(torch.float8_e4m3fn).t()
        one = torch.ones((), device=self._where)
        seconds = self._seconds(
            lambda: torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
        )
        return {"float8": 2 * side**3 / seconds}

    def convolution(self, dtype: str) -> float:
        """Return FLOP/s of a 3×3 convolution as a VAE has them."""
        channels, side = (64, 64) if self._cpu else (256, 512)
        weight = self._random(channels, channels, 3, 3, dtype=dtype)
        x = self._random(1, channels, side, side, dtype=dtype)
        seconds = self._seconds(lambda: self._torch.nn.functional.conv2d(x, weight, padding=1))
        return 2 * 9 * channels**2 * side**2 / seconds

    def attention(self, dtype: str) -> float:
        """Return FLOP/s of torch's scaled_dot_product_attention."""
        heads, tokens, width = (8, 256, 32) if self._cpu else (24, 4096, 128)
        q = self._random(1, heads, tokens, width, dtype=dtype)
        call = self._torch.nn.functional.scaled_dot_product_attention
        return 4 * heads * tokens**2 * width / self._seconds(lambda: call(q, q, q))

    def traffic(self) -> float:
        """Return B/s that an elementwise operation reads and writes."""
        x = self._random(_BYTES["cpu" if self._cpu else "cuda"] // 4)
        out = self._torch.empty_like(x)
        seconds = self._seconds(lambda: self._torch.add(x, 1.0, out=out))
        return 8.0 * float(x.numel()) / seconds

    def starts(self) -> tuple[float, float]:
        """Return seconds that a kernel takes to start and drain, and that the host takes to launch.

        A CPU starts its kernels itself: all of it is the first. On a GPU many small launches in a
        row show the larger of both, which the host's is taken to be.
        """
        x = self._random(8)
        each = self._seconds(lambda: x.add_(1.0), inner=500)
        return (each, 0.0) if self._cpu else (each / 2, each)

    def link(self) -> float:
        """Return B/s from the host's pinned memory to the device; traffic itself on a CPU."""
        if self._cpu:
            return self.traffic()
        host = self._torch.empty(2**28, dtype=self._torch.uint8, pin_memory=True)
        out = self._torch.empty(2**28, dtype=self._torch.uint8, device=self._where)
        return float(2**28) / self._seconds(lambda: out.copy_(host, non_blocking=True))
