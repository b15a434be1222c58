"""Puts a pipeline back as it was, whatever a library left on it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from planner.hooks.blocks import denoiser_of


@contextmanager
def cleanly(pipeline: Any) -> Iterator[None]:
    """Let a library change the pipeline inside the block; after it, all of that is gone.

    Restored are the attributes of the pipeline and of every module of its denoiser, and the order
    of its children (cache-dit takes block lists away and puts them back as the last ones). For
    the block the pipeline has a class of its own: cache-dit replaces `__call__` there.
    """
    modules = list(denoiser_of(pipeline).modules())
    kept = [vars(pipeline), *map(vars, modules), *(module._modules for module in modules)]
    before = [(now, dict(now)) for now in kept]
    kind = type(pipeline)
    pipeline.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__})
    try:
        yield
    finally:
        pipeline.__class__ = kind
        for now, then in before:
            _restore(now, then)


def _restore(now: dict[str, Any], then: dict[str, Any]) -> None:
    if list(now) != list(then):
        now.clear()
    now.update(then)


@contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Drop what a library logs below errors inside the block: it repeats itself at every setting.

    `logger` is the one that holds the library's handlers.
    """
    handlers = [(one, one.level) for one in logging.getLogger(logger).handlers]
    for handler, _ in handlers:
        handler.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for handler, level in handlers:
            handler.setLevel(level)
