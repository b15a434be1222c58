"""Changes are gathered until they are too many; some steps are never skipped."""

import math

from planner.hooks.gate import Gate, pinned

CHANGES = (0.1, 0.1, 0.1, 0.25, 0.05, 0.1, 0.1, 0.3, 0.1)


def free(steps: int = 10) -> list[bool]:
    """Return for each step whether it is held: the first and the last alone."""
    return [pinned(step, steps, 0.0) for step in range(steps)]


def test_the_rule_gathers_change_until_the_threshold_and_starts_again() -> None:
    #  gathered:  -  .1 .2 .3 .25 .05 .15 .25 .3  pinned
    assert Gate(0.25).mask(CHANGES, free()) == "1001100111"


def test_a_cap_computes_although_little_has_changed() -> None:
    assert Gate(10.0, most=2).mask([0.0] * 9, free()) == "1001001001"
    assert Gate(10.0, most=1).mask([0.0] * 9, free()) == "1010101011"
    assert Gate(10.0).mask([0.0] * 9, free()) == "1000000001"


def test_a_threshold_of_nothing_computes_everything() -> None:
    assert Gate(0.0).mask([0.0] * 9, free()) == "1" * 10


def test_a_change_that_is_no_number_computes_and_is_forgotten() -> None:
    changes = [0.1, math.nan, 0.1, math.inf, 0.1]
    assert Gate(1.0).mask(changes, free(6)) == "101011"


def test_a_pinned_step_is_computed_and_gathers_nothing() -> None:
    held = [True, False, True, False, False, True]
    assert Gate(0.15).mask([0.1] * 5, held) == "101011"


def test_the_first_the_last_and_the_steps_before_start_are_pinned() -> None:
    def mask(steps: int, start: float) -> str:
        return "".join("-p"[pinned(step, steps, start)] for step in range(steps))

    assert mask(10, 0.0) == "p--------p"
    assert mask(10, 0.2) == mask(10, 0.15) == "pp-------p"
    assert mask(10, 0.3) == "ppp------p", "three tenths of ten are three, whatever floats say"
    assert mask(5, 1.0) == "ppppp" and mask(1, 0.0) == "p"
