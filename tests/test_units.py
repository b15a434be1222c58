"""Durations and sizes are read and written the same way."""

import pytest

from planner.errors import UsageError
from planner.units import format_bytes, format_seconds, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2s", 2.0), ("850ms", 0.85), ("1.5 s", 1.5), ("10m", 600.0), ("3min", 180.0), ("1h", 3600.0)],
)
def test_durations_are_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [("12GiB", 12 * 2**30), ("12 GB", 12 * 10**9), ("800MB", 800 * 10**6), ("0.5KiB", 512)],
)
def test_binary_and_decimal_sizes_are_told_apart(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["850ms", "2s", "12.5s", "10m", "2.5m", "1h", "1234s", "0.25ms"])
def test_a_written_duration_reads_back(text: str) -> None:
    seconds = parse_seconds(text)
    assert parse_seconds(format_seconds(seconds)) == pytest.approx(seconds, rel=1e-3)


@pytest.mark.parametrize("size", [1, 1023, 2**20, 6 * 2**30, 123456789, 3 * 2**40])
def test_a_written_size_reads_back(size: int) -> None:
    assert parse_bytes(format_bytes(size)) == pytest.approx(size, rel=1e-3)


@pytest.mark.parametrize("text", ["2", "", "s", "two seconds", "-2s", "2s!", "1e3s"])
def test_a_duration_without_number_or_unit_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_seconds(text)
    assert caught.value.value == text
    assert repr(text) in caught.value.what
    assert "2s or 850ms" in caught.value.way_out


def test_an_unknown_unit_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        parse_bytes("12 gib")
    assert caught.value.value == "12 gib"
    assert "GiB" in caught.value.way_out


def test_nothing_is_no_duration() -> None:
    with pytest.raises(UsageError, match="not above zero"):
        parse_seconds("0s")
