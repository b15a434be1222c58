"""Every failure says what happened, the value, and the way out; each has its exit code."""

import ast
from pathlib import Path

import pytest

from planner import errors
from planner.errors import InvalidFile, PlannerError, TrialFailed, UsageError, nearest
from planner.strict_yaml import load
from planner.units import parse_seconds
from tests.source import PACKAGE, ROOT, files, nodes

CODES = {
    "PlannerError": 1,
    "UsageError": 2,
    "NoPlanMeetsGoal": 3,
    "NotCertified": 4,
    "PolicyDoesNotFit": 5,
    "InvalidFile": 6,
    "Interrupted": 7,
    "TrialFailed": 1,
}
LEAVES = sorted(set(CODES) - {"PlannerError"})


def made(file: Path) -> set[str]:
    """Return the names of everything that a file calls, such as error classes."""
    calls = (node for node in nodes(file) if isinstance(node, ast.Call))
    return {ast.unparse(node.func).rpartition(".")[2] for node in calls}


def expected(file: Path) -> set[str]:
    """Return the error classes that a test file names in pytest.raises."""
    calls = (node for node in nodes(file) if isinstance(node, ast.Call))
    return {
        ast.unparse(kind).rpartition(".")[2]
        for node in calls if ast.unparse(node.func) == "pytest.raises"
        for kind in node.args
    }  # fmt: skip


def test_every_class_has_the_documented_exit_code() -> None:
    classes = {
        kind.__name__: kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, PlannerError)
    }
    assert classes == CODES


def test_the_tree_at_the_top_of_the_file_is_the_tree() -> None:
    drawn = dict(
        line.replace("├──", "").replace("└──", "").split()[:2]
        for line in (errors.__doc__ or "").splitlines()
        if line.startswith("    ")
    )
    assert drawn == {kind: str(code) for kind, code in CODES.items()}


@pytest.mark.parametrize(
    "kind", [getattr(errors, leaf) for leaf in LEAVES if leaf != "TrialFailed"]
)
def test_an_error_reads_as_what_and_way_out_and_keeps_the_value(kind: type[PlannerError]) -> None:
    error = kind("cannot read '2'", value="2", way_out="write 2s")
    assert str(error) == "cannot read '2': write 2s"
    assert (error.what, error.value, error.way_out) == ("cannot read '2'", "2", "write 2s")


def test_a_failed_trial_names_its_stage() -> None:
    error = TrialFailed("image 3 is black", stage="guard", value=3, way_out="skip the plan")
    assert (error.stage, error.value, str(error)) == (
        "guard", 3, "image 3 is black: skip the plan",
    )  # fmt: skip


def test_no_error_can_be_made_without_a_way_out() -> None:
    with pytest.raises(TypeError, match="way_out"):
        UsageError("cannot read '2'")  # type: ignore[call-arg]


def test_a_usage_error_keeps_what_the_user_wrote() -> None:
    with pytest.raises(UsageError) as caught:
        parse_seconds("2 parsecs")
    assert caught.value.value == "2 parsecs"
    assert "'parsecs'" in caught.value.what
    assert caught.value.way_out.startswith("use one of ms, s")


def test_an_invalid_file_names_file_line_and_way_out() -> None:
    with pytest.raises(InvalidFile) as caught:
        load("a: 1\na: 2\n", where="x.yaml")
    assert caught.value.value == "a"
    assert str(caught.value) == "x.yaml:2 repeats the key 'a': keep one of them"


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_class_is_raised_by_the_package_and_expected_by_a_test(leaf: str) -> None:
    assert any(leaf in made(file) for file in files(PACKAGE)), f"nothing raises {leaf}"
    assert any(leaf in expected(file) for file in files(ROOT / "tests")), f"no test expects {leaf}"


def test_the_nearest_name_is_offered_and_else_all_of_them() -> None:
    known = ["tea_cache", "first_block_cache", "steps"]
    assert nearest("teacache", known) == "did you mean tea_cache?"
    assert nearest("qqq", known) == "known are first_block_cache, steps, tea_cache"
    assert nearest("qqq", []) == "none is known"
