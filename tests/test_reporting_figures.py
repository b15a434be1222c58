import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from planner.policy.file import PolicyFile
from planner.reporting import figures, words
from planner.reporting.draw_front import draw_front
from planner.reporting.findings import read_findings
from planner.reporting.front_picture import spread
from planner.reporting.pictures import chosen, data_uri
from planner.reporting.svg import ticks
from tests.page_study import Fake, certified_study, picture, plan


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PolicyFile]:
    folder = tmp_path_factory.mktemp("study")
    return folder, certified_study(folder)


def test_images_are_shown_worst_first(study: Any) -> None:
    found = read_findings(*study)
    distances = found.distances(found.plan)
    picked = chosen(distances)
    worst = sorted(distances.values(), reverse=True)[:6]
    assert [distances[key] for key, place in picked if place == "worst"] == worst
    middle = sorted(distances.values())[14:18]
    assert all(distances[key] in middle for key, place in picked if place == "median")
    assert len(picked) == len({key for key, _ in picked}) == 9


@pytest.mark.parametrize("count", [0, 1, 5, 7, 9, 32])
def test_no_prompt_is_shown_twice_however_few_there_are(count: int) -> None:
    picked = [key for key, _ in chosen({str(i): i / 10 for i in range(count)})]
    assert len(picked) == len(set(picked)) == min(count, 9)


def test_large_images_are_scaled_down_and_small_ones_kept_exactly() -> None:
    small = data_uri(picture(1))
    assert small.startswith("data:image/png;base64,")
    large = data_uri(picture(1, side=1024))
    head, _, body = large.partition(",")
    with Image.open(io.BytesIO(base64.b64decode(body))) as image:
        assert head == "data:image/jpeg;base64" and image.size == (320, 320)
    assert len(large) < 100_000


def test_step_masks_are_averaged_over_calls_and_absent_forwards_told_apart(study: Any) -> None:
    strips = {strip.label: strip for strip in figures.strips(read_findings(*study))}
    assert set(strips) == {"guidance_interval · cond", "guidance_interval · uncond",
                           "tea_cache · cond", "tea_cache · uncond"}  # fmt: skip
    uncond = strips["tea_cache · uncond"]
    assert uncond.calls == 32 and len(uncond.computed) == 30
    assert uncond.computed[:4] == (1.0, 1.0, 1.0, 0.5)
    assert uncond.absent == (0.0,) * 24 + (1.0,) * 6


def test_the_front_holds_no_plan_that_another_beats(study: Any) -> None:
    found = read_findings(*study)
    front = [(p.seconds, p.lpips) for p in figures.points(found) if p.on_front]
    others = [p for p in figures.points(found) if p.lpips is not None and not p.on_front]
    assert len(front) > 3
    assert all(
        p.standing == "stopped" or found.trials[p.number].origin == "bought"
        or any(s <= p.seconds and v is not None and v <= (p.lpips or 0) for s, v in front)
        for p in others
    )  # fmt: skip


def test_the_path_never_gets_worse_and_ends_at_the_winner(study: Any) -> None:
    found = read_findings(*study)
    best = [attempt.best for attempt in figures.path(found) if attempt.best is not None]
    assert best == sorted(best, reverse=True)
    assert found.trial is not None
    assert best[-1] == found.scores[found.trial.number].objective


def test_the_picture_shows_the_whole_range_of_prompts() -> None:
    shown = spread({str(i): i / 100 for i in range(32)})
    assert [(s.place, s.key) for s in shown] == [
        ("best", "0"), ("median", "16"), ("nine tenths", "28"), ("worst", "31"),
    ]  # fmt: skip
    assert [s.key for s in spread({"a": 0.1})] == ["a"]


def test_a_plan_far_outside_the_limits_is_drawn_at_the_edge(tmp_path: Path) -> None:
    fake = Fake(tmp_path)
    fake.baseline()
    fake.trial(plan(4), 0.1, 5.0)
    found = read_findings(tmp_path, None)
    (point,) = figures.points(found)
    drawn = draw_front([point], found.goal, 5.2, None, 968)
    assert point.lpips is not None and point.lpips > 1
    assert f"LPIPS {point.lpips:.4f}" in drawn
    assert 'cy="34"' in drawn and 'cy="-' not in drawn


@pytest.mark.parametrize(
    ("value", "written"),
    [(1.868, "1.87 s"), (2.0, "2 s"), (0.85, "850 ms"), (12.44, "12.4 s"), (903.4, "903 s"),
     (0.9999, "1000 ms"), (9.999, "10 s"), (None, "–")],
)  # fmt: skip
def test_seconds_have_three_digits(value: float | None, written: str) -> None:
    assert words.seconds(value) == written


def test_ticks_are_round_numbers_inside_the_range() -> None:
    assert ticks(0, 0.27, 6) == [0, 0.05, 0.1, 0.15, 0.2, 0.25]
    assert ticks(0, 5.5, 10) == [0, 1, 2, 3, 4, 5]
    assert ticks(3, 3, 5) == [3]
