"""The page of claims: a row for every number of the list, and rows that compute what they say."""

import re
import sys
from typing import Any

import pytest

from tests.source import ROOT

sys.path.insert(0, str(ROOT / "reports"))  # scripts, not a package
import claims

WITHOUT_NUMBER = {7, 8, 9, 10, 13, 15, 16, 17, 19, 20, 22, 23}
"""Rows of the checklist that state no number: they ask for a pass, a mode or a page."""

ITEMS = {
    *(str(n) for n in range(1, 26) if n not in WITHOUT_NUMBER),
    *(f"N{n}" for n in range(1, 18)),
    "§1", "§4", "§5",
}  # fmt: skip
"""What the list of claims holds: its checklist, its headlines, and sections beside those."""


def rows() -> list[Any]:
    return [one for group in claims.claims().values() for one in group]


def found(says: str) -> Any:
    return next(one for one in rows() if one.says == says)


def test_every_item_of_the_list_has_a_row_on_the_committed_page() -> None:
    page = (ROOT / "reports" / "claims.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| ([N§\d, ]+) \|", page, re.MULTILINE)
    assert {item for cell in cells for item in cell.split(", ")} == ITEMS
    assert len(cells) == len(rows())
    for one in rows():
        assert f"| {one.says} | {one.source} | {claims.stated(one)} |" in page


def test_a_row_names_a_formula_or_says_why_there_is_none() -> None:
    for heading, group in claims.claims().items():
        for one in group:
            assert one.why.strip() and (heading == "not computed") == (not one.by)
            assert not one.by or one.by in claims.FORMULAS


@pytest.mark.parametrize(
    ("says", "within"),
    [
        ("Qwen-Image, 1328×1328, 50 steps with guidance", 1e-3),
        ("Qwen-Image, one forward, attention", 1e-5),
        ("Qwen-Image, one forward, linear layers", 1e-3),
        ("Qwen-Image-Lightning in 8 steps, work of the denoiser", 1e-9),
        ("NVFP4, bits an element", 1e-9),
        ("MXFP8, bits an element", 1e-9),
        ("16 of 50 steps skipped, the bound", 1e-3),
        ("a card of 12 GB", 1e-9),
    ],
)
def test_what_follows_from_a_formula_is_met(says: str, within: float) -> None:
    one = found(says)
    assert one.computed() == pytest.approx(one.stated, rel=within)


@pytest.mark.parametrize(
    ("says", "value", "shown"),
    [
        ("Qwen-Image, one forward, attention", 35.23417, "35.2342 TFLOPs"),
        ("FLUX.2-dev, B200 against H200 in BF16", 1.7526, "1.75 ×"),
        ("the same at the H20's peak", 87.296, "87.3 s"),
        ("FP8 with BF16 on Hopper, latency of a video", -21.34, "-21.3 %"),
        ("RTX 50 cards that run it", 4.0, "4"),
    ],
)
def test_what_is_computed_has_the_decimals_of_what_is_stated_or_three_digits(
    says: str, value: float, shown: str
) -> None:
    assert claims.computed(found(says), value) == shown


def test_a_difference_is_counted_from_the_nearer_end_of_a_range() -> None:
    one = found("Qwen-Image, 1328×1328, 50 steps on an H20")
    assert claims.stated(one) == "126.6 to 127.4 s"
    assert claims.difference(one, 127.0) == "inside"
    assert claims.difference(one, 127.4 * 1.001) == "+0.10%"
    assert claims.difference(one, 126.6 * 0.9) == "-10%"
    percent = found("the same, share of the peak that is reached")
    assert claims.difference(percent, 73.0) == "+4 points"
