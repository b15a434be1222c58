"""YAML holds plain data in one document; everything clever is refused with its line."""

from pathlib import Path

import pytest

from planner.errors import InvalidFile, UsageError
from planner.strict_yaml import LIMIT_BYTES, load, read


def test_plain_data_is_read_with_the_words_of_yaml_1_2() -> None:
    lines = ("a: [1, -2, 2.5, 1e-3, .5]", "b: {c: true, d: null, e: ~}", "f: [yes, off, 1:30]")
    assert load("\n".join(lines), where="f") == {
        "a": [1, -2, 2.5, 0.001, 0.5],
        "b": {"c": True, "d": None, "e": None},
        "f": ["yes", "off", "1:30"],
    }


def test_quotes_and_blocks_make_text() -> None:
    assert load("a: '1'\nb: \"true\"\nc: |\n  two\n  lines\n", where="f") == {
        "a": "1", "b": "true", "c": "two\nlines\n",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x 1", "f:1 holds an anchor or alias"),
        ("a: 1\nb: *x", "f:2 holds an anchor or alias"),
        ("a: !!python/object/apply:os.system [ls]", "f:1 holds a tag"),
        ("a: !x 1", "f:1 holds a tag"),
        ("a: 1\nb: 2\na: 3", "f:3 repeats the key 'a'"),
        ("a: {b: 1, b: 2}", "f:1 repeats the key 'b'"),
        ("1: 2", "f:1 has a key that is no text"),
        ("true: 2", "f:1 has a key that is no text"),
        ("? [a]\n: 1", "f:1 has a key that is no text"),
        ("<<: {a: 1}", "f:1 merges mappings"),
        ("a: 1\n---\nb: 2", "f:2 starts a second document"),
        ("a: .inf", "f:1 holds .inf"),
        ("a: -.nan", "f:1 holds -.nan"),
        ("a: 1e999", "f:1 holds 1e999"),
        ("a: " + "9" * 50, "f:1 holds too long a number"),
        ("a: " + "[" * 30 + "]" * 30, "f:1 nests too deep"),
        ("a: [1", "f:1 is no YAML"),
        ("a: \x00", "f is no YAML"),
        ("- 1", "f holds no mapping"),
        ("", "f holds no mapping"),
    ],
)
def test_everything_clever_or_broken_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(InvalidFile) as caught:
        load(text, where="f")
    assert caught.value.what.startswith(said)
    assert caught.value.way_out


def test_depth_and_size_have_a_limit_that_is_not_a_crash() -> None:
    with pytest.raises(InvalidFile, match="nests too deep"):
        load("a: " + "{a: " * 50_000, where="f")
    with pytest.raises(InvalidFile, match="at most 100 bytes"):
        load("a: " + "x" * 100, where="f", limit_bytes=100)


def test_a_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "shapes.yaml").write_text("a: 1")
    with pytest.raises(UsageError, match=r"did you mean .*shapes\.yaml") as caught:
        read(tmp_path / "shape.yaml", what="a search file")
    assert caught.value.value == str(tmp_path / "shape.yaml")


def test_a_file_of_bytes_and_an_oversize_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(InvalidFile, match="a policy is UTF-8 text"):
        read(path, what="a policy")
    path.write_bytes(b"#" * (LIMIT_BYTES + 1))
    with pytest.raises(InvalidFile, match="is too long"):
        read(path, what="a policy")


def test_a_file_is_read_with_its_path_in_messages(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\n")
    assert read(path, what="a policy") == {"a": 1}
    path.write_text("a: *b\n")
    with pytest.raises(InvalidFile, match=r"a\.yaml:1 holds an anchor"):
        read(path, what="a policy")
