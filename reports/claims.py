"""Writes claims.md: `python reports/claims.py`, or `make claims`.

Numbers that talks, papers and vendors state, beside what planner computes from the catalogue, the
counted work and the fitted roofline. The rows lie in claims/, one file a heading: `by` names a
function of formulas.py and `of` its arguments. Nothing here was measured.
"""

from __future__ import annotations

from math import floor, log10
from pathlib import Path
from typing import Any

from formulas import FORMULAS

from planner import strict_yaml
from planner.case.noun import Noun

HERE = Path(__file__).parent
HEADINGS = ("work", "latency", "memory", "composition", "bounds", "not computed")
ROUNDS_AWAY = 5e-5
"""A smaller difference shows as none."""
FINE = 0.01
"""Up to this difference its digits matter: counts differ by less, predictions by more."""


class Claim(Noun):
    """What somebody states, where, how planner computes it, and why both differ or agree.

    `items` are the numbers of the list of claims that it covers. `stated` is a number, a range, or
    words where planner computes nothing (`by` is empty).
    """

    items: tuple[str, ...]
    says: str
    source: str
    stated: float | tuple[float, float] | str
    unit: str = ""
    by: str = ""
    of: dict[str, Any] = {}
    why: str

    def computed(self) -> float:
        """Return what planner computes."""
        return FORMULAS[self.by](**self.of)


def claims() -> dict[str, tuple[Claim, ...]]:
    """Return the rows of every heading."""
    return {heading: _read(heading) for heading in HEADINGS}


def _read(heading: str) -> tuple[Claim, ...]:
    file = HERE / "claims" / f"{heading.replace(' ', '-')}.yaml"
    return tuple(map(Claim.model_validate, strict_yaml.read(file, what="claims")["claims"]))


def page() -> str:
    """Compute everything and return the page in Markdown."""
    found = claims()
    rows = [one for group in found.values() for one in group]
    done = sum(bool(one.by) for one in rows)
    lines = [
        "# What others state, and what planner computes", "",
        f"By `make claims`: {len(rows)} claims, {done} of them computed. Operations, parameters",
        "and weights are counted; seconds, ratios and peaks of memory are predictions of the",
        "roofline ([how far they are off](predictor.md)). Nothing here was measured. Items are the",
        "list's: plain numbers its checklist, N its headlines, § its sections.", "",
    ]  # fmt: skip
    for heading, group in found.items():
        lines += [f"## {heading.capitalize()}", "", *_table(group), ""]
    return "\n".join(lines)


def _table(group: tuple[Claim, ...]) -> list[str]:
    """Return the rows of one heading; those that are not computed need fewer columns."""
    if not any(one.by for one in group):
        rows = [f"| {_items(one)} | {one.says} | {one.source} | {stated(one)} | {one.why} |"
                for one in group]  # fmt: skip
        return ["| item | claim | source | stated | why not |", "|---|---|---|---|---|", *rows]
    head = "| item | claim | source | stated | computed | difference | why |"
    return [head, "|---|---|---|---|---|---|---|", *map(row, group)]


def row(one: Claim) -> str:
    """Return a computed claim as a row of its table."""
    value = one.computed()
    return (f"| {_items(one)} | {one.says} | {one.source} | {stated(one)} | "
            f"{computed(one, value)} | {difference(one, value)} | {one.why} |")  # fmt: skip


def stated(one: Claim) -> str:
    """Return what is stated, with its unit."""
    if isinstance(one.stated, str):
        return one.stated
    ends = one.stated if isinstance(one.stated, tuple) else (one.stated,)
    return " to ".join(f"{end:,.7g}" for end in ends) + _unit(one)


def computed(one: Claim, value: float) -> str:
    """Return what is computed with its unit, to the decimals of what is stated or three digits."""
    ends = one.stated if isinstance(one.stated, tuple) else (one.stated,)
    decimals = max(len(f"{end:.7g}".partition(".")[2]) for end in ends if not isinstance(end, str))
    digits = 2 - floor(log10(abs(value))) if value else 0
    shown = 0 if value == round(value) else max(decimals, digits, 0)
    return f"{value:,.{shown}f}{_unit(one)}"


def difference(one: Claim, value: float) -> str:
    """Return points between percentages, and a share of anything else, from the nearer end."""
    if isinstance(one.stated, str):
        return "–"
    low, high = one.stated if isinstance(one.stated, tuple) else (one.stated, one.stated)
    near = min(max(value, low), high)
    if near == value:
        return "none" if low == high else "inside"
    if one.unit == "%":
        points = round(value - near)
        return f"{points:+} point{'s' * (abs(points) > 1)}" if points else "none"
    share = value / near - 1
    if abs(share) < ROUNDS_AWAY:
        return "none"
    return f"{share:+.2%}" if abs(share) < FINE else f"{share:+.0%}"


def _items(one: Claim) -> str:
    return ", ".join(one.items)


def _unit(one: Claim) -> str:
    return f" {one.unit}" if one.unit else ""


if __name__ == "__main__":
    (HERE / "claims.md").write_text(page(), encoding="utf-8")
