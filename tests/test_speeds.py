"""A card's speeds follow its datasheet, its board, its age and the stack that runs there."""

import pytest

from planner.catalog.devices import card
from planner.prediction.roofline import Speeds
from planner.prediction.speeds import Constants, Stack, rests_on, speeds

EVEN = Constants(power=0.0, desktop=1.0, early=1.0, hopper=1.0, step_fused=1.0)


def of(name: str, stack: Stack = "eager", **changes: float) -> Speeds:
    return speeds(card(name), EVEN.model_copy(update=changes), stack)


@pytest.mark.parametrize(("name", "faster"), [("l4", False), ("rtx-3090", True)])
def test_a_board_with_few_watts_for_its_rated_speed_multiplies_slower(
    name: str, faster: bool
) -> None:
    even, bound = (of(name, power=power).products["float16"] for power in (0.0, 0.2))
    assert (bound > even) == faster


def test_desktops_take_less_of_the_host_for_launches_and_steps() -> None:
    server, desktop = of("h100-sxm", desktop=0.5), of("rtx-4090", desktop=0.5)
    assert desktop.launch == server.launch / 2 and desktop.step == server.step / 2
    assert of("rtx-6000ada", desktop=0.5).launch == server.launch


def test_attention_is_slower_where_its_usual_kernel_does_not_run() -> None:
    assert of("v100-sxm-16gb", early=0.5).attention[""] == of("a100-sxm-80gb").attention[""] / 2


def test_a_compiler_or_an_engine_leaves_a_share_of_each_steps_python() -> None:
    eager, old, compiled, engine = (
        of("a10", stack, step_fused=0.3).step
        for stack in ("eager", "old", "compiled", "engine")  # type: ignore[arg-type]
    )
    assert eager == old and compiled == engine == pytest.approx(0.3 * eager)


def test_a_device_that_taught_nothing_takes_its_familys_factor() -> None:
    taught = EVEN.model_copy(update={"devices": {"rtx-4090": 1.2, "a10": 0.8}})
    plain = speeds(card("l40"), EVEN).products["float16"]
    assert speeds(card("l40"), taught).products["float16"] == pytest.approx(1.2 * plain)
    assert [rests_on(card(name), taught) for name in ("a10", "l40", "t4")] == [
        "this device", "its family", "datasheet",
    ]  # fmt: skip
