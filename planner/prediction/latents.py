"""From pixels and frames to latents, and what sizes a model refuses."""

from __future__ import annotations

from typing import Any, NamedTuple

from planner.catalog.entry import Limits, Shape
from planner.errors import UsageError


class Latent(NamedTuple):
    """The size of a latent image or video."""

    frames: int
    height: int
    width: int


def factors(vae: Any) -> tuple[int, int]:
    """Return how many frames, and how many pixels a side, one latent stands for.

    Raises `UsageError` for a VAE that does not say it.
    """
    config = vae.config
    time = _known(vae, "temporal_compression_ratio", "scale_factor_temporal")
    space = _known(vae, "spatial_compression_ratio", "scale_factor_spatial")
    stages = config.get("block_out_channels") or ()
    if space is None and stages:
        space = 2 ** (len(stages) - 1)
    if space is None:
        name = type(vae).__name__
        raise UsageError(f"the compression of {name} is unknown", value=name,
                         way_out="use a VAE whose config names it")  # fmt: skip
    return int(time or 1), int(space)


def channels(vae: Any) -> int:
    """Return the number of channels of a VAE's latents."""
    return int(vae.config.get("z_dim") or vae.config.get("latent_channels"))


def latent_of(vae: Any, patch: int, shape: Shape, limits: Limits | None, title: str) -> Latent:
    """Return the latent that the shape asks for; `patch` is the denoiser's, a side.

    Raises `UsageError` naming the nearest size, frame count or text length that the model takes.
    """
    time, space = factors(vae)
    for name in ("height", "width"):
        _check_side(name, getattr(shape, name), space * patch, limits, title)
    _check_frames(shape.frames, time, limits, title)
    if limits is not None and shape.text_tokens > limits.text_tokens:
        what = f"{title} takes no text of {shape.text_tokens} tokens"
        raise UsageError(what, value=shape.text_tokens,
                         way_out=f"give at most {limits.text_tokens}")  # fmt: skip
    return Latent((shape.frames - 1) // time + 1, shape.height // space, shape.width // space)


def rounded(vae: Any, patch: int, shape: Shape) -> Shape:
    """Return the shape that a pipeline makes of one: sides and frames rounded down."""
    time, space = factors(vae)
    step = space * patch
    return shape.model_copy(update={
        "height": max(step, shape.height // step * step),
        "width": max(step, shape.width // step * step),
        "frames": (shape.frames - 1) // time * time + 1,
    })  # fmt: skip


def _check_side(name: str, value: int, step: int, limits: Limits | None, title: str) -> None:
    most = None if limits is None else limits.side
    near = max(step, round(value / step) * step)
    if most is not None and value > most:
        what, near = f"{title} takes no {name} of {value} pixels, only up to {most}", most
    elif value % step:
        what = f"{title} takes no {name} of {value} pixels, which is no multiple of {step}"
    else:
        return
    raise UsageError(what, value=value, way_out=f"the nearest that it takes is {near}")


def _check_frames(frames: int, time: int, limits: Limits | None, title: str) -> None:
    most = None if limits is None else limits.frames
    if time == 1 and frames > 1:
        what, near = f"{title} draws one image, not {frames} frames", 1
    elif most is not None and frames > most:
        what, near = f"{title} takes at most {most} frames, not {frames}", most
    elif (frames - 1) % time:
        near = round((frames - 1) / time) * time + 1
        near = near if most is None else min(near, most)
        what = f"{title} takes no {frames} frames, only one more than a multiple of {time}"
    else:
        return
    raise UsageError(what, value=frames, way_out=f"the nearest that it takes is {near}")


def _known(vae: Any, *names: str) -> Any:
    """Return the first of these that the config or the module knows."""
    for name in names:
        value = vae.config.get(name)
        value = getattr(vae, name, None) if value is None else value
        if value is not None:
            return value
    return None
