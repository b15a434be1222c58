"""Work is priced by what bounds it: arithmetic, traffic, launches or the link."""

import math

import numpy as np
import pytest

from planner.case.work import Operation, Part, Phase, Work
from planner.errors import UsageError
from planner.prediction.memory import Margin, peak, peak_within
from planner.prediction.roofline import Speeds, Table, price

FAST = Speeds(
    products={"bfloat16": 100e12, "tf32": 50e12}, convolution=0.5,
    attention={"": 0.5, "flash3": 0.8}, bandwidth=1e12, cached=2.0, cache=1e6,
    launch=0.0, ramp=0.0, call=0.0, step=0.0, link=1e10,
)  # fmt: skip


def op(**values: object) -> Operation:
    usual = {"path": "a", "kind": "linear", "flops": 0.0, "bytes": 0.0, "dtype": "bfloat16"}
    return Operation.model_validate(usual | values)


def phase(*operations: Operation, **values: object) -> Phase:
    usual: dict[str, object] = {"name": "denoise", "calls": 10, "operations": operations}
    return Phase.model_validate(usual | values)


def seconds(*phases: Phase, **changes: object) -> float:
    device = FAST.model_copy(update=changes)
    return float(price(Table.of([Work(phases=phases)]), [device]).total[0])


def test_a_product_takes_its_arithmetic_at_the_speed_of_its_kind() -> None:
    assert seconds(phase(op(flops=1e14))) == pytest.approx(10)
    assert seconds(phase(op(flops=1e14, kind="convolution"))) == pytest.approx(20)
    assert seconds(phase(op(flops=1e14, kind="attention"))) == pytest.approx(20)
    assert seconds(phase(op(flops=1e14, kind="attention", kernel="flash3"))) == pytest.approx(12.5)


def test_a_convolution_in_float32_multiplies_in_tf32() -> None:
    assert seconds(phase(op(flops=1e14, kind="convolution", dtype="float32"))) == pytest.approx(40)


def test_elementwise_work_takes_its_traffic_and_less_of_it_inside_the_cache() -> None:
    large = seconds(phase(op(kind="elementwise", bytes=1e12)))
    small = seconds(phase(op(kind="elementwise", bytes=1e12, launches=10**8)))
    assert large == pytest.approx(10) and small == pytest.approx(5, rel=1e-3)


def test_two_equal_bounds_take_a_little_more_than_one() -> None:
    both = seconds(phase(op(flops=1e14, bytes=1e12)))
    assert both == pytest.approx(10 * 2**0.25)


def test_many_small_kernels_are_bound_by_the_host_unless_they_are_captured() -> None:
    small = op(flops=1e6, launches=1000)
    assert seconds(phase(small), launch=1e-5) == pytest.approx(0.1, rel=1e-3)
    assert seconds(phase(small, captured=True), launch=1e-5) < 1e-3


def test_a_share_below_one_takes_that_share_of_the_time() -> None:
    assert seconds(phase(op(flops=1e14, share=0.3))) == pytest.approx(3)


def test_weights_over_the_link_add_their_time_unless_they_overlap() -> None:
    work = op(flops=1e14)
    assert seconds(phase(work, transfers=1e11)) == pytest.approx(20)
    assert seconds(phase(work, transfers=1e10, overlapped=True)) == pytest.approx(10, rel=1e-3)


def test_a_type_without_a_unit_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="no unit for float8 products"):
        seconds(phase(op(flops=1.0, dtype="float8_e4m3fn")))


def test_several_works_are_priced_at_once_as_each_alone() -> None:
    works = [Work(phases=(phase(op(flops=1e14 * k)), phase(op(bytes=1e12), name="decode")))
             for k in (1, 2)]  # fmt: skip
    together = price(Table.of(works), [FAST, FAST])
    alone = [price(Table.of([work]), [FAST]).total[0] for work in works]
    assert np.allclose(together.total, alone)
    assert together.by_phase["denoise"][1] == pytest.approx(20)


def test_memory_peaks_in_the_phase_that_needs_most() -> None:
    parts = [
        Part(name="text_encoder", phase="encode", parameters=5, bytes=10e9),
        Part(name="transformer", phase="denoise", parameters=6, bytes=12e9),
        Part(name="vae", phase="decode", parameters=0.1, bytes=0.2e9),
    ]  # fmt: skip
    phases = (
        phase(op(), name="encode"), phase(op(), peak=1e9), phase(op(), name="decode", peak=2e9),
    )  # fmt: skip
    nothing = Margin(context=0.0, fragments=0.0)
    resident = peak(Work(phases=phases, parts=tuple(parts)), nothing)
    assert resident.phase == "decode" and math.isclose(resident.total, 24.2e9)
    away = [part.model_copy(update={"place": "host"}) for part in parts]
    offloaded = peak(Work(phases=phases, parts=tuple(away), kept=0.5e9), nothing)
    assert offloaded.phase == "denoise" and math.isclose(offloaded.total, 13.5e9)
    streamed = [part.model_copy(update={"place": "streamed", "window": 1e9}) for part in parts]
    assert peak(Work(phases=phases, parts=tuple(streamed)), nothing).total < 4e9


def test_copies_of_convolutions_are_done_without_where_no_room_is_left() -> None:
    one = Work(phases=(phase(op(), name="decode", peak=2e9, copies=1.5),))
    lost = Margin(context=0.0, fragments=0.0)
    assert peak_within(one, lost, 4e9).total == 3e9
    assert peak_within(one, lost, 2.5e9).total == 2e9
    assert peak(one, lost.model_copy(update={"old": 2.0})).total == 6e9
