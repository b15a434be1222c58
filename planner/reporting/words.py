"""Numbers and limits as the page writes them."""

from __future__ import annotations

from planner.case.goal import Goal
from planner.units import format_bytes


def seconds(value: float | None) -> str:
    """Write seconds with three significant digits: 1.87 s, 850 ms, 12.4 s, 903 s."""
    if value is None:
        return "–"
    if value < 1:
        return f"{_digits(value * 1e3)} ms"
    return f"{_digits(value)} s"


def lpips(value: float | None) -> str:
    """Write a distance with four decimals."""
    return "–" if value is None else f"{value:.4f}"


def ratio(value: float | None) -> str:
    """Write a share of the untouched call's time with three decimals."""
    return "–" if value is None else f"{value:.3f}"


def factor(share: float) -> str:
    """Write how many times as fast a call is that takes this share of the untouched one."""
    return f"{1 / share:.2f}×"


def size(value: float | None) -> str:
    """Write bytes with a space before the unit: 812 MiB."""
    if value is None:
        return "–"
    text = format_bytes(value)
    unit = text.lstrip("0123456789.")
    return f"{_digits(float(text.removesuffix(unit)))} {unit}"


def at_most(written: str | None) -> str:
    """Write an upper bound, or that there is none."""
    return "no bound" if written is None else f"≤ {written}"


def limits(goal: Goal) -> str:
    """Write the goal's limits: 2 s a call, mean LPIPS 0.1."""
    said = []
    if goal.budget_seconds is not None:
        said.append(f"at most {seconds(goal.budget_seconds)} a call")
    if goal.vram_bytes is not None:
        said.append(f"at most {size(goal.vram_bytes)}")
    said.append(
        "quality not constrained" if goal.max_lpips is None
        else f"mean LPIPS at most {goal.max_lpips:.4g}"
    )  # fmt: skip
    return ", ".join(said)


def count(n: int, one: str, many: str = "") -> str:
    """Write a number with its noun: 1 prompt, 32 prompts."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def _digits(value: float) -> str:
    """Write three significant digits without an exponent; whole numbers without decimals."""
    if value >= 99.95:
        return f"{value:.0f}"
    text = f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
    return text if float(text) != int(float(text)) else f"{int(float(text))}"
