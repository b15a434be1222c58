"""Draws the front of all measured plans, and the incumbent's path over the trials."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from planner.case.goal import Goal
from planner.reporting import words
from planner.reporting.draw_parts import Guide
from planner.reporting.figures import Attempt, Certified, Point
from planner.reporting.svg import Canvas, Frame, Scale

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 34, 46


def draw_front(
    points: Sequence[Point], goal: Goal, reference: float, unseen: Certified | None, width: float
) -> Markup:
    """Draw seconds against mean LPIPS with uncertainty, the front, and the goal's limits."""
    height = 470 if width > 500 else 380
    frame = _front_frame(points, goal, reference, unseen, width, height)
    _limits(frame, goal)
    most = 10 if width > 500 else 5
    frame.axes("seconds a call", "mean LPIPS", x_most=most, y_most=6)
    _staircase(frame, [p for p in points if p.on_front])
    for point in sorted(points, key=lambda p: (p.shown, p.on_front)):
        _mark(frame, point)
    frame.canvas.box(frame.x(reference) - 4.5, frame.y(0) - 4.5, 9, 9, "untouched",
                     hint=f"untouched: {reference:.3g} s, LPIPS 0")  # fmt: skip
    frame.canvas.text(frame.x(reference) - 9, frame.y(0) - 8, "untouched", "note", "end")
    if unseen is not None:
        _unseen(frame, unseen)
    return frame.canvas.svg("Seconds of a call against mean LPIPS for every measured plan")


def draw_path(
    attempts: Sequence[Attempt], name: str, limits: Sequence[Guide], width: float
) -> Markup:
    """Draw every trial's objective in order, and the best one inside the limits so far.

    `limits` are those on the objective itself.
    """
    height = 330 if width > 500 else 300
    values = [a.value for a in attempts if a.value is not None]
    best = [a.best for a in attempts if a.best is not None]
    marks = [limit.value for limit in limits]
    top = 1.08 * max([*values, *marks, 1e-9])
    if best:
        top = min(top, 3 * max(best[0], *marks, 1e-9))
    canvas = Canvas(width, height)
    last = max(1.0, len(attempts) - 0.5)
    frame = Frame(canvas, Scale(-0.5, last, _LEFT, width - _RIGHT),
                  Scale(0, top, height - _BOTTOM, _TOP + 24), above=34)  # fmt: skip
    frame.axes("trials, in order", name, x_most=12 if width > 500 else 6, y_most=5)
    for limit in (limit for limit in limits if limit.value <= top):
        up = frame.y(limit.value)
        canvas.line(frame.x.start, up, frame.x.stop, up, limit.style)
        canvas.text(frame.x.stop, up - 5, limit.name, f"{limit.style}-name", "end")
    _phases(frame, attempts)
    _steps(frame, attempts)
    for index, attempt in enumerate(attempts):
        _attempt(frame, index, attempt)
    return canvas.svg("Objective of every trial in order, and the best plan so far")


def _front_frame(
    points: Sequence[Point], goal: Goal, reference: float, unseen: Certified | None,
    width: float, height: float,
) -> Frame:  # fmt: skip
    """Choose ranges that show limits and front; a plan far outside is drawn at the edge."""
    cap, budget = goal.max_lpips or 0.0, goal.budget_seconds or 0.0
    seen = [point.lpips for point in points if point.lpips is not None]
    fronts = [point.lpips for point in points if point.on_front and point.lpips is not None]
    bound = (unseen.lpips_upper or unseen.lpips) if unseen else 0.0
    top = max(1.35 * cap, 1.1 * bound, min(max(seen, default=0.1) * 1.08, 3 * cap or 1e9))
    top = max(top, 1.05 * max(fronts, default=0.0) if not cap else 0.0)
    right = max(1.06 * reference, 1.1 * budget)
    right = max(right, min(max((p.high for p in points), default=0.0), 1.3 * reference))
    return Frame(Canvas(width, height), Scale(0, right, _LEFT, width - _RIGHT),
                 Scale(0, top, height - _BOTTOM, _TOP))  # fmt: skip


def _limits(frame: Frame, goal: Goal) -> None:
    """Tint what lies inside the limits and name them at the edges."""
    canvas, x, y = frame.canvas, frame.x, frame.y
    budget, cap = goal.budget_seconds, goal.max_lpips
    right = x.clip(budget) if budget is not None else x.stop
    ceiling = y.clip(cap) if cap is not None else y.stop
    canvas.box(x.start, ceiling, right - x.start, y.start - ceiling, "inside-area")
    if budget is not None:
        canvas.line(right, y.start, right, y.stop, "limit")
        canvas.text(right + 5, y.stop + 10, f"budget {words.seconds(budget)}", "limit-name")
    if cap is not None:
        canvas.line(x.start, ceiling, x.stop, ceiling, "limit")
        canvas.text(x.stop, ceiling - 6, f"cap {cap:g}", "limit-name", "end")


def _staircase(frame: Frame, front: Sequence[Point]) -> None:
    """Join the front's points as stairs: between two of them nothing better was seen."""
    placed = sorted((point.seconds, point.lpips or 0.0) for point in front)
    corners: list[tuple[float, float]] = []
    for seconds, lpips in placed:
        if corners:
            corners.append((frame.x.clip(seconds), corners[-1][1]))
        corners.append((frame.x.clip(seconds), frame.y.clip(lpips)))
    frame.canvas.polyline(corners, "front")


def _mark(frame: Frame, point: Point) -> None:
    canvas, x, y = frame.canvas, frame.x, frame.y
    across = x.clip(point.seconds)
    if point.lpips is None:
        hint = f"#{point.number} {point.plan}: {point.seconds:.3g} s, no image compared"
        canvas.line(across, y.stop - 5, across, y.stop + 4, "unseen-mark")
        canvas.box(across - 3, y.stop - 6, 6, 12, "hit", hint=hint)
        return
    up = y.clip(point.lpips)
    hint = (f"#{point.number} {point.plan}: {point.seconds:.3g} s, "
            f"LPIPS {point.lpips:.4f} ± {point.error:.4f}")  # fmt: skip
    kind = "shown" if point.shown else "on-front" if point.on_front else point.standing
    if point.lpips <= y.high and point.seconds <= x.high:
        canvas.line(x.clip(point.low), up, x.clip(point.high), up, f"bar {kind}")
        below, above = y.clip(point.lpips - point.error), y.clip(point.lpips + point.error)
        canvas.line(across, below, across, above, f"bar {kind}")
    if point.shown:
        canvas.circle(across, up, 9, "ring")
    canvas.circle(across, up, 5 if point.on_front or point.shown else 4, f"dot {kind}", hint)
    if point.shown:  # below, since its certificate usually lies above
        canvas.text(across - 9, up + 18, f"#{point.number}", "label shown", "end")
    elif point.on_front:
        canvas.text(across + 8, up - 8, f"#{point.number}", "label")


def _unseen(frame: Frame, unseen: Certified) -> None:
    """Draw the certificate's figures with whiskers up to the bounds."""
    canvas, x, y = frame.canvas, frame.x, frame.y
    across, up = x.clip(unseen.seconds), y.clip(unseen.lpips)
    if unseen.seconds_upper is not None:
        end = x.clip(unseen.seconds_upper)
        canvas.line(across, up, end, up, "bar unseen")
        canvas.line(end, up - 4, end, up + 4, "bar unseen")
    if unseen.lpips_upper is not None:
        end = y.clip(unseen.lpips_upper)
        canvas.line(across, up, across, end, "bar unseen")
        canvas.line(across - 4, end, across + 4, end, "bar unseen")
    canvas.diamond(across, up, 6.5, "dot unseen", hint=(
        f"on {unseen.n} unseen prompts: {unseen.seconds:.3g} s, LPIPS {unseen.lpips:.4f}"
    ))  # fmt: skip


def _phases(frame: Frame, attempts: Sequence[Attempt]) -> None:
    """Say where the expert seeds end and the sampler begins."""
    seeds = sum(attempt.origin == "seed" for attempt in attempts)
    canvas = frame.canvas
    if 0 < seeds < len(attempts):
        edge = frame.x(seeds - 0.5)
        canvas.line(edge, frame.y.start, edge, frame.y.stop - 22, "phase")
        canvas.text(edge - 6, frame.y.stop - 12, "expert seeds", "note", "end")
        canvas.text(edge + 6, frame.y.stop - 12, "sampler", "note")


def _steps(frame: Frame, attempts: Sequence[Attempt]) -> None:
    corners: list[tuple[float, float]] = []
    for index, attempt in enumerate(attempts):
        if attempt.best is None:
            continue
        if corners:
            corners.append((frame.x(index), corners[-1][1]))
        corners.append((frame.x(index), frame.y.clip(attempt.best)))
    if corners:
        corners.append((frame.x.stop, corners[-1][1]))
    frame.canvas.polyline(corners, "front")


def _attempt(frame: Frame, index: int, attempt: Attempt) -> None:
    across, y = frame.x(index), frame.y
    hint = f"#{attempt.number} {attempt.plan}"
    if attempt.standing == "failed":
        frame.canvas.cross(across, y.start - 6, 4, "failed", f"{hint}: failed")
    elif attempt.value is None:
        frame.canvas.line(across, y.stop - 5, across, y.stop + 4, "unseen-mark")
        frame.canvas.box(across - 3, y.stop - 6, 6, 12, "hit", hint=f"{hint}: no image compared")
    else:
        style = f"dot {attempt.standing}"
        frame.canvas.circle(across, y.clip(attempt.value), 4, style, f"{hint}: {attempt.value:.4g}")
