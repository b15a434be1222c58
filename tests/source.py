"""The package's own source, parsed once: what the gates of the house read."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "planner"


class Import(NamedTuple):
    """One imported module or name, and where."""

    module: str
    line: int
    at_top: bool


def files(folder: Path = PACKAGE) -> list[Path]:
    """Return every Python file of a folder."""
    return sorted(folder.rglob("*.py"))


@cache
def tree(file: Path) -> ast.Module:
    """Return the parsed file."""
    return ast.parse(file.read_text())


@cache
def nodes(file: Path) -> tuple[ast.AST, ...]:
    """Return every node of a file, in no particular order."""
    return tuple(ast.walk(tree(file)))


def imports(file: Path) -> Iterator[Import]:
    """Yield every imported module of a file, also those inside functions.

    `from a import b` yields a and a.b, since b may be a module; relative imports are refused.
    """
    top = set(tree(file).body)
    for node in nodes(file):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, node in top)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(file)}:{node.lineno} imports relatively"
            yield Import(node.module or "", node.lineno, node in top)
            for alias in node.names:
                yield Import(f"{node.module}.{alias.name}", node.lineno, node in top)


def name(file: Path) -> str:
    """Return a file's path inside the repository, for messages."""
    return file.relative_to(ROOT).as_posix()
