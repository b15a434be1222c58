"""A U-Net's inside: where its outermost layers are cut off, and letting its parts stand still."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

Forward = Callable[..., Any]


class Cut(NamedTuple):
    """Where a U-Net is cut: modules that a skipped step leaves out, and the one it keeps.

    What `feeder`, one of them, returned is what the first layer behind the cut is given.
    """

    out: tuple[Any, ...]
    feeder: Any


def cut(unet: Any, layers: int) -> Cut:
    """Return the cut that leaves so many layers of the last up block.

    Its last layer reads what goes into the first down block, the one before it what that block's
    first layer returns, and so on.
    """
    first, last = unet.down_blocks[0], unet.up_blocks[-1]
    left = max(0, len(last.resnets) - layers)
    shallow = len(last.resnets) - left - 1
    deep = [*unet.down_blocks[1:], unet.mid_block, *unet.up_blocks[:-1]]
    inside = [*_parts(first, slice(shallow, None)), *(first.downsamplers or ())]
    before = _parts(last, slice(0, left))
    out = [module for module in (*inside, *deep, *before) if module is not None]
    return Cut(tuple(out), out[-1])


def _parts(block: Any, which: slice) -> list[Any]:
    """Return some of a block's layers in calling order: of each its resnet, then its attention."""
    resnets, attentions = block.resnets[which], getattr(block, "attentions", None)
    if attentions is None:
        return list(resnets)
    return [part for pair in zip(resnets, attentions[which], strict=True) for part in pair]


@contextmanager
def instead(forwards: Mapping[Any, Forward]) -> Iterator[None]:
    """Let modules run something else inside the block, around all hooks on them."""
    had = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, before in had.items():
            if before is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = before
