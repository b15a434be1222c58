"""The caches of cache-dit, put on by its own public calls where it is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib import metadata
from typing import Any

from planner.case.noun import Scalar
from planner.passes.base import Domain
from planner.tuning.bench.clean import cleanly, quiet
from planner.tuning.bench.method import Learned, Method, On
from planner.tuning.bench.peers import peer
from planner.tuning.bench.rig import Rig

_THRESHOLDS = Domain(low=0.01, high=0.95, log=True)
_PRESETS = ("slow", "medium", "fast", "ultra")
_LOOSE = ("0.1", "0.2", "0.4", "0.7", "static")
_MASKS = Domain(choices=tuple(f"{preset} {how}" for preset in _PRESETS for how in _LOOSE))
_SEPARATE = "enable_separate_cfg is on, without which it would mix the branches of this pipeline"

Fields = Callable[[Rig, Any], dict[str, Any]]
"""What a value of the knob sets in the library's DBCacheConfig."""


def version() -> str | None:
    """Return the installed version of cache-dit, None where there is none."""
    try:
        return metadata.version("cache-dit")
    except metadata.PackageNotFoundError:
        return None


def cache_dit_peers() -> list[Method]:
    """Return cache-dit's methods: its default, shallower probes, and its presets of step masks."""
    if version() is None:
        return []
    return [
        _dual("DBCache F8B0", {}),
        _dual("DBCache F1B0", {"Fn_compute_blocks": 1}),
        _dual("DBCache F1B0 W4", {"Fn_compute_blocks": 1, "max_warmup_steps": 4}),
        _dual("DBCache F1B0 W4 TaylorSeer", {"Fn_compute_blocks": 1, "max_warmup_steps": 4},
              taylor=True),
        _masks("steps_mask F1B0", taylor=False),
        _masks("steps_mask F1B0 TaylorSeer", taylor=True),
    ]  # fmt: skip


def _dual(name: str, fields: Mapping[str, Any], *, taylor: bool = False) -> Method:
    knob = "residual_diff_threshold"
    return _peer(name, knob, _THRESHOLDS, 0.08, lambda _, value: {**fields, knob: value}, taylor)


def _masks(name: str, *, taylor: bool) -> Method:
    return _peer(name, "mask and threshold", _MASKS, "medium static", _masked, taylor)


def _masked(rig: Rig, value: str) -> dict[str, Any]:
    """Return a preset's mask; steps off it are reused always, or below a threshold."""
    preset, how = value.split()
    steps = rig.case.workload.steps
    fields = {
        "Fn_compute_blocks": 1, "num_inference_steps": steps,
        "steps_computation_mask": _library().steps_mask(total_steps=steps, mask_policy=preset),
        "steps_computation_policy": "static" if how == "static" else "dynamic",
    }  # fmt: skip
    return fields if how == "static" else {**fields, "residual_diff_threshold": float(how)}


def _peer(
    name: str, knob: str, domain: Domain, default: Scalar, fields: Fields, taylor: bool
) -> Method:
    return peer(f"cache-dit {name}", f"cache-dit {version()}", knob, domain, default,
                _enabled(fields, taylor), note=_SEPARATE)  # fmt: skip


def _enabled(fields: Fields, taylor: bool) -> On:
    @contextmanager
    def on(rig: Rig, value: Scalar, learned: Learned) -> Iterator[Mapping[str, Any]]:
        cache_dit = _library()
        calibrator = cache_dit.TaylorSeerCalibratorConfig() if taylor else None
        config = cache_dit.DBCacheConfig(enable_separate_cfg=True, **fields(rig, value))
        with quiet("CACHE_DIT"), cleanly(rig.pipeline):
            cache_dit.enable_cache(rig.pipeline, cache_config=config, calibrator_config=calibrator)
            try:
                yield rig.case.workload.call
            finally:
                cache_dit.disable_cache(rig.pipeline)

    return on


def _library() -> Any:
    """Import cache-dit; its log goes where stdout is at that moment, and belongs on stderr."""
    with redirect_stdout(sys.stderr):
        import cache_dit
    return cache_dit
