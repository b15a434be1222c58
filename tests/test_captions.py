"""The caption checker passes true pictures, rejects wrong ones, and says why."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from planner.measure.captions import Mention, check, parse
from planner.zoo import world
from planner.zoo.draw import Thing, draw


def _picture(*things: Thing) -> np.ndarray:
    return draw(things, seed=5)


def _thing(colour: str, shape: str, x: float = 64, y: float = 64, texture: str = "plain") -> Thing:
    return Thing(shape, colour, texture, x, y, radius=25, angle=0.2)


def test_true_pictures_pass() -> None:
    scenes = [world.scene("certify", 900 + i) for i in range(100)]
    passed = [check(scene.image(), scene.caption).passed for scene in scenes]
    assert sum(passed) >= 95


def test_pictures_of_other_captions_fail() -> None:
    scenes = [world.scene("certify", 700 + i) for i in range(60)]
    wrong = [
        check(scene.image(), other.caption).passed
        for scene, other in pairwise(scenes)
        if scene.caption != other.caption
    ]
    assert sum(wrong) <= 0.05 * len(wrong)


@pytest.mark.parametrize("shape", ["circle", "square", "triangle", "star", "ring", "cross"])
def test_each_shape_is_told_from_the_others(shape: str) -> None:
    picture = _picture(_thing("blue", shape, texture="striped"))
    for asked in ("circle", "square", "triangle", "star", "ring", "cross"):
        assert check(picture, f"a blue {asked}").passed == (asked == shape)


def test_each_colour_is_told_from_the_others() -> None:
    for colour in world.COLOURS:
        picture = _picture(_thing(colour, "circle", texture="dotted"))
        for asked in world.COLOURS:
            article = "an" if asked == "orange" else "a"
            assert check(picture, f"{article} {asked} circle").passed == (asked == colour)


def test_the_place_counts_and_the_reason_says_so() -> None:
    picture = _picture(_thing("red", "star", x=30))
    assert check(picture, "a red star on the left").passed
    answer = check(picture, "a red star on the right")
    assert not answer.passed
    assert answer.objects[0].reason == "not in its place"


def test_the_number_counts() -> None:
    picture = _picture(_thing("green", "ring", 30, 30), _thing("green", "ring", 95, 90))
    assert check(picture, "two green rings").passed
    assert check(picture, "green rings").passed
    assert not check(picture, "three green rings").passed
    assert not check(_picture(_thing("green", "ring")), "green rings").passed


def test_relations_are_checked_both_ways() -> None:
    picture = _picture(_thing("red", "circle", 35, 60), _thing("blue", "square", 95, 66))
    assert check(picture, "a red circle left of a blue square").passed
    assert not check(picture, "a red circle right of a blue square").passed
    hiding = _picture(_thing("red", "square", 55, 64), _thing("blue", "circle", 80, 70))
    assert check(hiding, "a blue circle in front of a red square").passed
    assert check(hiding, "a red square behind a blue circle").passed
    assert not check(hiding, "a blue circle behind a red square").passed


def test_an_empty_ground_shows_nothing() -> None:
    answer = check(_picture(), "a shape")
    assert not answer.passed
    assert "shape" in answer.objects[0].reason


def test_a_caption_is_read_into_mentions() -> None:
    assert parse("a striped red circle behind an orange star") == (
        (Mention("red", "circle"), Mention("orange", "star")),
        "behind",
    )
    assert parse("three cyan crosses")[0] == (Mention("cyan", "cross", None, 3, 3),)
    assert parse("yellow squares")[0] == (Mention("yellow", "square", None, 2, None),)
    assert parse("a red shape in the center")[0] == (Mention("red", None, "center"),)


def test_a_caption_without_a_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="no shape in 'a red dog', known are circle"):
        parse("a red dog")
