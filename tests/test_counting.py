"""Operations are counted by what they multiply, and convolutions by what they copy."""

import pytest
import torch

from planner.case.work import Operation
from planner.prediction.counting import Counting, Scope, Tally


def counted(call: object, *arguments: torch.Tensor) -> tuple[list[Operation], Tally]:
    tally, counting = Tally(), Counting(Scope())
    for tensor in arguments:
        counting.lifetimes.see(tensor)
    with torch.no_grad(), counting:
        counting.begin(tally)
        call(*arguments)  # type: ignore[operator]
        counting.end()
    return list(tally.operations()), tally


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def test_a_scaled_product_is_linear_in_the_type_that_it_multiplies() -> None:
    eight = torch.float8_e4m3fn
    one = torch.ones((), device="meta")
    found, _ = counted(
        lambda a, b: torch._scaled_mm(a, b, one, one, out_dtype=torch.bfloat16),
        meta(32, 64, dtype=eight), meta(16, 64, dtype=eight).t(),
    )  # fmt: skip
    product = max(found, key=lambda op: op.flops)
    assert (product.kind, product.dtype) == ("linear", "float8_e4m3fn")
    assert product.flops == 2 * 32 * 64 * 16


def test_a_product_of_integers_is_linear_in_int8() -> None:
    found, _ = counted(
        torch._int_mm, meta(32, 64, dtype=torch.int8), meta(64, 16, dtype=torch.int8)
    )
    assert [(op.kind, op.dtype, op.flops) for op in found] == [("linear", "int8", 2 * 32 * 64 * 16)]


@pytest.mark.parametrize(("batch", "copied"), [(1, 1.0), (4, 1.0), (8, 0.5)])
def test_a_convolution_copies_what_it_reads_and_writes_a_part_of_a_large_batch_at_once(
    batch: int, copied: float
) -> None:
    side, wide = 1024, 256
    pixels, weight = meta(batch, wide, side, side), meta(wide, wide, 3, 3)
    layer = torch.nn.functional.conv2d
    _, tally = counted(lambda x, w: layer(x, w, padding=1), pixels, weight)
    each = batch * wide * side * side * 2
    alive = 2 * each + wide * wide * 9 * 2
    assert tally.peak == pytest.approx(alive)
    assert tally.crest == pytest.approx(alive + 2 * each * copied)
