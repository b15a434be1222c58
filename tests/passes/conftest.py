"""Fixtures of the tests of passes."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.passes.driving import Bench, leftovers, shared_bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    """The shared bench, which must be as untouched after the test as before it."""
    yield shared_bench()
    assert leftovers(shared_bench().pipe) == []


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Dynamo's counters over a compile without a code generator, which is the slow part."""
    yield from _counted(monkeypatch, "aot_eager")


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Dynamo's counters over captured graphs that run as they are: quicker still."""
    yield from _counted(monkeypatch, "eager")


def _counted(monkeypatch: pytest.MonkeyPatch, backend: str) -> Iterator[dict[str, Any]]:
    from torch._dynamo.utils import counters

    real = torch.compile

    def compile_(function: Any, *, mode: str, dynamic: bool | None, **limit: Any) -> Any:
        return real(function, backend=backend, dynamic=dynamic, **limit)

    monkeypatch.setattr(torch, "compile", compile_)
    shared = shared_bench()
    kept, shared.memo = shared.memo, {}
    counters.clear()
    yield counters
    shared.memo = kept
