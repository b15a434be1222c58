"""Fixtures of the tests of passes."""

from collections.abc import Iterator

import pytest

from tests.passes.driving import Bench, leftovers, shared_bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    """The shared bench, which must be as untouched after the test as before it."""
    yield shared_bench()
    assert leftovers(shared_bench().pipe) == []
