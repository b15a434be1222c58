"""What the README says is so: its tree, its code, its commands, its links.

The tree stands between `<!-- tree -->` and `<!-- /tree -->` in a code block: one name a line, two
spaces an indent, folders with a slash, then what it is. A folder shown open shows all its folders,
and all of its files or none.
"""

import ast
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

import planner
from planner.cli.main import commands
from tests.source import ROOT

README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
UNSHOWN = {"__init__.py", "py.typed"}
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    """Return the code blocks of a language."""
    return [text for name, text in BLOCKS if name == language]


def shown() -> dict[str, set[str]]:
    """Return folder → the names that the README's tree shows in it; the root is « »."""
    found = re.search(r"<!-- tree -->\s*```\w*\n(.*?)```\s*<!-- /tree -->", README, re.DOTALL)
    assert found, "the README has no tree between <!-- tree --> and <!-- /tree -->"
    inside: dict[str, set[str]] = {}
    above: list[str] = []
    for line in found[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        word = line.split()[0]
        above = [*above[:depth], word.rstrip("/")]
        assert word.endswith("/") == (ROOT / "/".join(above)).is_dir(), f"{word} is not there"
        inside.setdefault("/".join(above[:-1]), set()).add(above[-1])
    return inside


def tracked() -> dict[str, set[str]]:
    """Return folder → the names that git tracks in it."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    inside: dict[str, set[str]] = {}
    for path in map(Path, done.stdout.splitlines()):
        for part in (path, *path.parents[:-1]):
            folder = "" if part.parent == Path() else part.parent.as_posix()
            inside.setdefault(folder, set()).add(part.name)
    return inside


def test_the_tree_of_the_readme_is_the_tree() -> None:
    real = tracked()
    for folder, names in shown().items():
        seen = {name for name in real[folder] - UNSHOWN if not name.startswith(".")}
        folders = {name for name in seen if (ROOT / folder / name).is_dir()}
        said = f"the README's tree of {folder or 'the top level'} is another"
        assert names == (folders if names <= folders else seen), said


def test_the_tree_of_the_readme_shows_every_room() -> None:
    assert {"", "planner"} <= set(shown())


@pytest.mark.parametrize("text", blocks("python"))
def test_python_in_the_readme_compiles_and_uses_public_names(text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            public = node.value.id != "planner" or node.attr in planner.__all__
            assert public, f"planner.{node.attr} is not public"


def commands_shown() -> list[str]:
    """Return the lines that a reader is told to type; a backslash joins two."""
    texts = [text.replace("\\\n", " ") for text in blocks("console")]
    typed = [line for text in texts for line in text.splitlines()]
    return [line.removeprefix("$ ") for line in typed if line.startswith("$ ")]


def test_the_readme_shows_the_two_commands() -> None:
    assert {"make tune", "make test"} <= set(commands_shown())


@pytest.mark.parametrize("line", [one for one in commands_shown() if one.startswith("planner ")])
def test_planner_commands_in_the_readme_parse(line: str) -> None:
    name, *arguments = shlex.split(line, comments=True)[1:]
    context = click.Context(commands)
    found = commands.get_command(context, name)
    assert found is not None, f"there is no command {name}"
    found.make_context(name, [*arguments], parent=context)


@pytest.mark.parametrize("line", [one for one in commands_shown() if one.startswith("make ")])
def test_make_targets_in_the_readme_exist(line: str) -> None:
    target = shlex.split(line, comments=True)[1]
    assert re.search(rf"^{re.escape(target)}:", MAKEFILE, re.MULTILINE), f"no target {target}"


def test_pictures_and_links_of_the_readme_are_there() -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)|<img[^>]+src=\"([^\"]+)\"", README)
    local = [a or b for a, b in links if not (a or b).startswith(("http:", "https:"))]
    assert [link for link in local if not (ROOT / link).exists()] == []
