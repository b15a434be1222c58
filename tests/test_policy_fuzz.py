"""Damaged and hostile policy files: each is refused, or says exactly what it said before."""

import random
from pathlib import Path

import pytest

from planner.errors import InvalidFile, UsageError
from planner.policy.file import PolicyFile, dump, read_policy
from tests.policies import a_policy


def outcome(path: Path, content: bytes) -> PolicyFile | InvalidFile:
    path.write_bytes(content)
    try:
        return read_policy(path)
    except InvalidFile as error:
        assert str(path) in error.what and error.way_out
        return error


def test_a_policy_cut_after_any_line_is_refused(tmp_path: Path) -> None:
    policy = a_policy()
    lines = dump(policy).encode().splitlines(keepends=True)
    for count in range(len(lines)):
        found = outcome(tmp_path / "cut.yaml", b"".join(lines[:count]))
        assert isinstance(found, InvalidFile), f"{count} lines"


def test_a_policy_cut_at_any_of_its_last_bytes_is_refused(tmp_path: Path) -> None:
    content = dump(a_policy()).encode()
    for end in range(len(content) - 80, len(content) - 2, 2):
        assert isinstance(outcome(tmp_path / "cut.yaml", content[:end]), InvalidFile), end
    assert outcome(tmp_path / "cut.yaml", content[:-1]) == a_policy()  # only the last newline


def test_a_flipped_byte_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    policy = a_policy()
    content = dump(policy).encode()
    draw = random.Random(0)
    refused = 0
    for _ in range(100):
        place = draw.randrange(len(content))
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.randrange(8)
        found = outcome(tmp_path / "flipped.yaml", bytes(flipped))
        assert isinstance(found, InvalidFile) or found == policy, place
        refused += isinstance(found, InvalidFile)
    assert refused > 60


def test_lines_swapped_or_dropped_are_refused_or_change_nothing(tmp_path: Path) -> None:
    policy = a_policy()
    lines = dump(policy).splitlines(keepends=True)
    draw = random.Random(1)
    for _ in range(40):
        a, b = draw.randrange(len(lines)), draw.randrange(len(lines))
        mixed = list(lines)
        mixed[a], mixed[b] = mixed[b], mixed[a]
        if draw.random() < 0.5:
            del mixed[draw.randrange(len(mixed))]
        found = outcome(tmp_path / "mixed.yaml", "".join(mixed).encode())
        assert isinstance(found, InvalidFile) or found == policy


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)
HEAD = "apiVersion: planner/v1\n"

HOSTILE = {
    "billion laughs": (BOMB, "anchor or alias"),
    "python object": (HEAD + "status: !!python/object/apply:os.system ['touch /tmp/x']\n", "tag"),
    "any tag": (HEAD + "status: !!str certified\n", "tag"),
    "duplicate key": (dump(a_policy()).replace("kind:", "kind: Policy\nkind:", 1), "repeats"),
    "two documents": (dump(a_policy()) + "---\n" + dump(a_policy()), "second document"),
    "merge key": (HEAD + "<<: {status: certified}\n", "merges mappings"),
    "number as key": (HEAD + "1: 2\n", "key that is no text"),
    "mapping as key": (HEAD + "? {a: b}\n: c\n", "key that is no text"),
    "not a number": (dump(a_policy()).replace("q50: 0.068", "q50: .nan"), ".nan"),
    "infinite": (dump(a_policy()).replace("q50: 0.068", "q50: 1e999"), "1e999"),
    "deep": (HEAD + "status: " + "[" * 5000 + "]" * 5000 + "\n", "too deep"),
    "deep blocks": (HEAD + "".join(f"{' ' * i}a:\n" for i in range(500)), "too deep"),
    "long": (HEAD + "summary: " + "x" * (2 << 20) + "\n", "too long"),
    "a list": ("- apiVersion: planner/v1\n", "no mapping"),
    "nothing": ("", "no mapping"),
    "a tab": (HEAD + "\tstatus: certified\n", "no YAML"),
    "lone surrogate": (dump(a_policy()).replace("kind: cpu", 'kind: "\\ud800"'), "cannot be"),
    "octal": (dump(a_policy()).replace("threads: 2", "threads: 0o2"), "threads"),
    "sexagesimal": (dump(a_policy()).replace("threads: 2", "threads: 1:30"), "threads"),
    "date": (dump(a_policy()).replace("threads: 2", "threads: 2026-11-22"), "threads"),
    "yes": (dump(a_policy()).replace("cacheable: true", "cacheable: yes"), "cacheable"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    text, said = HOSTILE[name]
    found = outcome(tmp_path / "hostile.yaml", text.encode())
    assert isinstance(found, InvalidFile)
    assert said in found.what


@pytest.mark.parametrize("content", [
    b"\xff\xfe\x00", dump(a_policy()).encode("utf-16"), dump(a_policy(status="certified")).replace(
        "2.80GHz", "2.80\u00e9").encode("latin-1"), b"\x00" * 100, b"apiVersion: \x00planner/v1\n",
])  # fmt: skip
def test_what_is_no_utf8_text_is_refused(tmp_path: Path, content: bytes) -> None:
    assert isinstance(outcome(tmp_path / "binary.yaml", content), InvalidFile)


def test_a_file_of_fifty_megabytes_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(50 << 20)
    with pytest.raises(InvalidFile, match="too long"):  # parsed, it would be no YAML
        read_policy(path)


def test_a_folder_in_the_place_of_a_policy_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        read_policy(tmp_path)
