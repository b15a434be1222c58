"""The public names, exactly; and that no submodule replaces one of them."""

import importlib
import pkgutil

import planner

PUBLIC = ["Policy", "check", "load", "plan", "shapes", "tune"]
FUNCTIONS = ["check", "load", "plan", "shapes", "tune"]


def test_the_public_names_are_exactly_these() -> None:
    assert sorted(planner.__all__) == PUBLIC
    assert set(PUBLIC) <= set(dir(planner))


def test_public_functions_stay_callable_after_importing_every_submodule() -> None:
    for module in pkgutil.walk_packages(planner.__path__, "planner."):
        importlib.import_module(module.name)
    assert [name for name in FUNCTIONS if not callable(getattr(planner, name))] == []
    assert isinstance(planner.Policy, type)


def test_an_unknown_name_is_an_attribute_error() -> None:
    try:
        _ = planner.tunes
    except AttributeError as error:
        assert "tunes" in str(error)
    else:
        raise AssertionError("planner.tunes was found")
