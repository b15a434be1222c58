"""Sizes that the house allows, for every file of the package and its tests."""

import ast
from pathlib import Path
from statistics import median

from tests.source import PACKAGE, ROOT, files, name, nodes

LONGEST_FILE = 300
LONGEST_FUNCTION = 50
PYTHON = [*files(PACKAGE), *files(ROOT / "tests")]


def functions(file: Path) -> list[tuple[str, int]]:
    """Return place and lines of every function of a file."""
    return [
        (f"{name(file)}:{node.lineno} {node.name}", (node.end_lineno or 0) - node.lineno + 1)
        for node in nodes(file)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_files_stay_short() -> None:
    lines = {name(file): len(file.read_text().splitlines()) for file in PYTHON}
    assert {file: count for file, count in lines.items() if count > LONGEST_FILE} == {}


def test_functions_stay_short() -> None:
    sizes = [one for file in PYTHON for one in functions(file)]
    assert [one for one in sizes if one[1] > LONGEST_FUNCTION] == []


def test_half_of_the_functions_of_the_package_fit_ten_lines() -> None:
    assert median(size for file in files(PACKAGE) for _, size in functions(file)) < 10


def test_no_exception_is_caught_and_dropped() -> None:
    wrong = [
        f"{name(file)}:{node.lineno}"
        for file in PYTHON
        for node in nodes(file)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or all(isinstance(step, ast.Pass) for step in node.body))
    ]
    assert not wrong, wrong


def test_nothing_is_left_to_do() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "raise Not" + "Implemented")
    prose = [ROOT / "README.md", ROOT / "Makefile", *(ROOT / "search").glob("*.yaml")]
    wrong = [
        f"{name(file)} holds {mark}"
        for file in [*PYTHON, *prose]
        for mark in marks
        if mark in file.read_text()
    ]
    assert not wrong, wrong
