"""The caches of diffusers, put on by its own public calls."""

from __future__ import annotations

import ast
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib import metadata
from statistics import fmean
from typing import Any

from planner.case.noun import Scalar
from planner.case.prompts import Prompt
from planner.errors import PlannerError
from planner.hooks.blocks import denoiser_of
from planner.passes.base import Domain
from planner.tuning.bench.clean import cleanly, quiet
from planner.tuning.bench.method import Learned, Method, On
from planner.tuning.bench.rig import Rig

Config = Callable[[Rig, Any, Learned], Any]
"""Makes the library's own configuration of a value of the knob."""

_INTERVALS = Domain(low=2, high=13, integer=True)
_MIXES = (
    "keeps one state for both branches: under sequential guidance what one branch computed is "
    "reused by the other"
)


def diffusers_peers() -> list[Method]:
    """Return diffusers' step and attention caches that can be put on a Flux."""
    return [
        _peer("FirstBlockCache", "threshold", _threshold(0.01, 0.8), 0.05, _first_block),
        _mag("MagCache", {}),
        _mag("MagCache (K 5, retention 0.1)", {"max_skip_steps": 5, "retention_ratio": 0.1}),
        _peer("TaylorSeer", "cache_interval", _INTERVALS, 5, _taylor(lite=False),
              note="forecasts every attention's output; the rest of a block always runs"),
        _peer("TaylorSeer lite", "cache_interval", _INTERVALS, 5, _taylor(lite=True)),
        _peer("SeaCache", "threshold", _threshold(0.05, 2.0), 0.25, _sea,
              note="needs step, sigma and step count from the pipeline, which Flux does not pass"),
        _peer("PyramidAttentionBroadcast", "spatial_attention_block_skip_range", _INTERVALS, 2,
              _broadcast, note=_MIXES),
        _peer("FasterCache", "spatial_attention_block_skip_range", _INTERVALS, 2, _faster,
              note=f"its guidance part needs both branches in one batch, so it runs with "
              f"is_guidance_distilled; {_MIXES}"),
    ]  # fmt: skip


def peer(
    name: str, source: str, knob: str, domain: Domain, default: Scalar, on: On, **more: Any
) -> Method:
    """Return another library's method; its recipe names the value and what was learned."""

    def recipe(value: Scalar, learned: Learned) -> dict[str, Any]:
        return {"value": value, "learned": learned}

    return Method(name=name, side="peer", source=source, knob=knob, domain=domain,
                  default=default, on=on, recipe=recipe, **more)  # fmt: skip


def _peer(
    name: str, knob: str, domain: Domain, default: Scalar, config: Config, **more: Any
) -> Method:
    source = f"diffusers {metadata.version('diffusers')}"
    return peer(f"diffusers {name}", source, knob, domain, default, _enabled(config), **more)


def _threshold(low: float, high: float) -> Domain:
    return Domain(low=low, high=high, log=True)


def _enabled(config: Config) -> On:
    @contextmanager
    def on(rig: Rig, value: Scalar, learned: Learned) -> Iterator[Mapping[str, Any]]:
        denoiser = denoiser_of(rig.pipeline)
        with quiet("diffusers"), cleanly(rig.pipeline):
            denoiser.enable_cache(config(rig, value, learned))
            try:
                yield rig.case.workload.call
            finally:
                denoiser.disable_cache()

    return on


def _first_block(rig: Rig, value: Any, learned: Learned) -> Any:
    from diffusers import FirstBlockCacheConfig

    return FirstBlockCacheConfig(threshold=value)


def _mag(name: str, more: Mapping[str, Any]) -> Method:
    def config(rig: Rig, value: Any, learned: Learned) -> Any:
        from diffusers.hooks import MagCacheConfig

        return MagCacheConfig(
            threshold=value, mag_ratios=learned["ratios"],
            num_inference_steps=rig.case.workload.steps, **more,
        )  # fmt: skip

    return _peer(name, "threshold", _threshold(0.01, 0.8), 0.06, config, learn=_mag_ratios,
                 lesson="diffusers MagCache",
                 note="calibrated by its own mode; it takes one list of ratios for both branches, "
                 "here the mean of the two that it prints")  # fmt: skip


def _mag_ratios(rig: Rig, prompts: tuple[Prompt, ...]) -> Learned:
    """Calibrate as documented: one run, whose ratios are read from what it prints."""
    from diffusers.hooks import MagCacheConfig

    def config(*_: Any) -> Any:
        return MagCacheConfig(calibrate=True, num_inference_steps=rig.case.workload.steps)

    said = io.StringIO()
    with _enabled(config)(rig, None, {}) as arguments, redirect_stdout(said):
        rig.call(prompts[0], arguments)
    lists = [line for line in said.getvalue().splitlines() if line.startswith(("[0", "[1"))]
    if not lists:
        way_out = "leave it out, or read how this release calibrates"
        raise PlannerError("diffusers MagCache printed no ratios", way_out=way_out)
    return {"ratios": [fmean(pair) for pair in zip(*map(ast.literal_eval, lists), strict=True)]}


def _taylor(*, lite: bool) -> Config:
    def config(rig: Rig, value: Any, learned: Learned) -> Any:
        from diffusers import TaylorSeerCacheConfig

        return TaylorSeerCacheConfig(cache_interval=value, use_lite_mode=lite)

    return config


def _sea(rig: Rig, value: Any, learned: Learned) -> Any:
    from diffusers.hooks import SeaCacheConfig

    return SeaCacheConfig(threshold=value)


def _broadcast(rig: Rig, value: Any, learned: Learned) -> Any:
    from diffusers import PyramidAttentionBroadcastConfig

    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=value,
        current_timestep_callback=lambda: rig.pipeline.current_timestep,
    )


def _faster(rig: Rig, value: Any, learned: Learned) -> Any:
    from diffusers import FasterCacheConfig

    return FasterCacheConfig(
        spatial_attention_block_skip_range=value, is_guidance_distilled=True,
        current_timestep_callback=lambda: rig.pipeline.current_timestep,
    )  # fmt: skip
