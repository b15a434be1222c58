"""The noisy latents of a denoiser as what they picture: channels over frames, rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planner.errors import UsageError
from planner.hooks.whole import latents_of, tensors_of


def pictured(args: Any, kwargs: Any, channels: int = 0) -> list[Any]:
    """Return the latents of a forward as tensors batch × channels × frames × rows × columns.

    Tokens are laid out by what the denoiser is told of them: `img_shapes` (Qwen-Image), `img_ids`
    (FLUX), or `num_frames`, `height` and `width` (LTX); of more tokens than these say (images that
    condition), the first ones are the latents. `channels` tells where a video has them: some
    denoisers take frames first (CogVideoX), or channels last. Raises `UsageError` where nothing
    tells.
    """
    found = []
    for tensor in tensors_of(latents_of(args, kwargs)):
        if tensor.dim() == 3:
            frames, rows, columns = _layout(tensor, kwargs)
            tokens = tensor[:, : frames * rows * columns]
            found.append(tokens.mT.reshape(tensor.shape[0], -1, frames, rows, columns))
        elif tensor.dim() == 4 and not isinstance(latents_of(args, kwargs), Sequence):
            found.append(tensor.unsqueeze(2))
        else:  # a batch of videos, or one video of a list of them
            video = tensor if tensor.dim() == 5 else tensor.unsqueeze(0)
            places = [axis for axis in (1, 2, -1) if video.shape[axis] == channels]
            found.append(video.movedim(places[0], 1) if places else video)
    return found


def channels_of(denoiser: Any) -> int:
    """Return how many channels a denoiser's latents have, zero where it does not say."""
    return int(getattr(denoiser, "config", {}).get("in_channels") or 0)


def _layout(tokens: Any, kwargs: Any) -> tuple[int, int, int]:
    """Return frames, rows and columns of a batch of token sequences."""
    shapes, ids = kwargs.get("img_shapes"), kwargs.get("img_ids")
    if shapes:
        first: Any = shapes[0]
        while not isinstance(first[0], int):
            first = first[0]
        return first[0], first[1], first[2]
    if ids is not None:
        places = ids[0] if ids.dim() == 3 else ids
        latents = places[places[:, 0] == places[0, 0], 1:3]  # images that condition bear another
        low, high = latents.aminmax(dim=0)
        rows, columns = map(int, (high - low + 1).tolist())
        return len(latents) // (rows * columns), rows, columns
    said = [kwargs.get(name) for name in ("num_frames", "height", "width")]
    if None not in said:
        return said[0], said[1], said[2]
    raise UsageError(f"nothing tells how {tokens.shape[1]} latent tokens lie",
                     value=tokens.shape[1],
                     way_out="use a cache that does not look at frequencies")  # fmt: skip
