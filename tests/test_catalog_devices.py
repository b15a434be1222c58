"""Devices of the catalogue: read strictly, found however they are written."""

import pytest

from planner.catalog.devices import card, cards
from planner.errors import UsageError


def test_every_card_has_a_peak_a_bandwidth_and_a_source() -> None:
    assert len(cards()) > 40
    for one in cards().values():
        assert one.peaks.float16 and one.bandwidth > 100 and one.memory_gb >= 8 and one.source
        assert (one.capability is None) != (one.chip is None)
        assert (one.price is None) == (one.price_source is None)


def test_no_measured_product_is_far_above_its_rated_peak() -> None:
    for one in cards().values():
        for kind in ("float16", "bfloat16", "float8"):
            rated, seen = getattr(one.peaks, kind), getattr(one.gemm, kind)
            assert seen is None or rated is None or 0.4 * rated < seen < 1.15 * rated, one.id


def test_narrow_formats_are_there_only_where_the_chip_has_them() -> None:
    for one in cards().values():
        if one.capability is not None:
            assert (one.peaks.float8 is not None) == (one.capability >= (8, 9)), one.id
            assert (one.peaks.float4 is not None) == (one.capability >= (10, 0)), one.id


@pytest.mark.parametrize("name", ["h100-sxm", "H100-SXM", "NVIDIA H100 SXM", "h100sxm"])
def test_a_card_is_found_however_it_is_written(name: str) -> None:
    assert card(name).id == "h100-sxm"


def test_an_unknown_card_is_refused_with_those_that_begin_alike() -> None:
    with pytest.raises(UsageError, match="no device 'H100'") as refused:
        card("H100")
    assert "h100-pcie" in refused.value.way_out and "h100-sxm" in refused.value.way_out
    with pytest.raises(UsageError) as refused:
        card("rtx-4091")
    assert "rtx-4090" in refused.value.way_out


def test_a_card_is_the_device_of_a_case() -> None:
    device = card("rtx-4070").device({"torch": "2.14.1"})
    assert device.capability == (8, 9) and device.memory_bytes == 12 * 2**30
    assert device.slug == "rtx4070"
