"""The ledger keeps what was measured through torn lines, damage, full disks and two tuners."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from planner.case.outcome import Failed, Measured
from planner.case.prompts import Sample
from planner.errors import InvalidFile, PlannerError, UsageError
from planner.plans.plan import BASELINE
from planner.trials.ledger import Ledger
from planner.trials.trial import Trial

STUDY = {"case": "abc", "seed": 7}
MEASURED = Trial(number=0, plan=BASELINE, outcome=Measured(seconds=(1.5,), ratios=(1.0,)),
                 origin="seed", seconds=3.25, predicted={"seconds": 1.25})  # fmt: skip
FAILED = Trial(number=1, plan=BASELINE, outcome=Failed(stage="memory", reason="out of memory"),
               origin="sampler", seconds=0.5)  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A study with one finished trial, one failed trial and one that was only started."""
    path = tmp_path / "study" / "ledger.jsonl"
    with Ledger.create(path, STUDY) as ledger:
        ledger.append("sample", Sample(role="baseline-1", prompts=("p",), seconds=2.0).model_dump())
        ledger.append("sample", Sample(role="baseline-2", prompts=("p",), seconds=2.5).model_dump())
        for trial in (MEASURED, FAILED):
            ledger.append("start", {"number": trial.number})
            ledger.append("trial", trial.model_dump(mode="json"))
        ledger.append("start", {"number": 2, "plan": "kept"})
    return path


def test_everything_written_is_read_back_equal(path: Path) -> None:
    with Ledger.open(path) as ledger:
        assert ledger.study == STUDY
        assert ledger.trials() == [MEASURED, FAILED]
        assert [trial.measured is None for trial in ledger.trials()] == [False, True]
        assert [sample.seconds for sample in ledger.samples("baseline-2")] == [2.5]
        assert len(ledger.samples()) == 2
        assert len(ledger) == 8


def test_each_line_is_numbered_and_chained(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["n"] for line in lines] == list(range(1, 9))
    assert all(set(line) == {"n", "kind", "body", "sha"} for line in lines)
    assert len({line["sha"] for line in lines}) == 8


def test_a_start_without_an_end_is_lost_until_that_is_recorded(path: Path) -> None:
    with Ledger.open(path) as ledger:
        assert ledger.lost() == [{"number": 2, "plan": "kept"}]
        ledger.append("lost", {"number": 2})
        assert ledger.lost() == []
    assert Ledger.read(path).lost() == []


def test_a_study_is_not_begun_twice(path: Path) -> None:
    with pytest.raises(UsageError, match="already lies") as caught:
        Ledger.create(path, STUDY)
    assert caught.value.value == str(path)
    assert "--resume" in caught.value.way_out and "--fresh" in caught.value.way_out


def test_a_fresh_study_keeps_the_old_one_beside_it(path: Path) -> None:
    before = path.read_bytes()
    with Ledger.create(path, {"case": "new"}, fresh=True) as ledger:
        assert ledger.study == {"case": "new"} and ledger.trials() == []
    assert path.with_name("ledger.jsonl.old-1").read_bytes() == before


def test_a_missing_study_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no study lies") as caught:
        Ledger.open(tmp_path / "none.jsonl")
    assert "none.jsonl" in str(caught.value.value) and "--resume" in caught.value.way_out
    with pytest.raises(UsageError, match="cannot read ledger"):
        Ledger.read(tmp_path / "none.jsonl")


def test_a_second_tuner_is_refused_with_the_first_ones_process(path: Path) -> None:
    with Ledger.open(path):
        for enter in (lambda: Ledger.open(path), lambda: Ledger.create(path, {}, fresh=True)):
            with pytest.raises(UsageError, match=f"process {os.getpid()} on ") as caught:
                enter()
            assert "stop it" in caught.value.way_out
        assert len(Ledger.read(path)) == 8  # looking is always allowed
    Ledger.open(path).close()


def test_the_lock_of_a_killed_tuner_is_free_again(path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from planner.trials.ledger import "
        "Ledger; ledger = Ledger.open(Path(sys.argv[1])); ledger.append('noise', {'a': 1}); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode == -9
    with Ledger.open(path) as ledger:
        assert ledger.bodies("noise") == [{"a": 1}]


def test_a_line_torn_at_any_byte_is_dropped_and_backed_up(path: Path) -> None:
    whole = path.read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for k, end in enumerate(range(start + 1, len(whole)), start=1):
        path.write_bytes(whole[:end])
        assert len(Ledger.read(path)) == 7
        with Ledger.open(path) as ledger:
            assert len(ledger) == 7
        assert path.read_bytes() == whole[:start]
        assert path.with_name(f"ledger.jsonl.torn-{k}").read_bytes() == whole[:end]


def test_a_study_goes_on_after_a_torn_line(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"n":9,"kind":"tri')
    with Ledger.open(path) as ledger:
        ledger.append("end", {"status": "done"})
    assert len(Ledger.read(path)) == 9
    assert len(list(path.parent.glob("*.torn-*"))) == 1


@pytest.mark.parametrize("line", [1, 4, 7])
@pytest.mark.parametrize("damage", ["changed", "removed", "doubled", "swapped", "garbage"])
def test_damage_before_the_last_line_is_refused_with_its_line(
    path: Path, damage: str, line: int
) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    here, after = lines[line - 1 : line + 1]
    lines[line - 1 : line + 1] = {
        "changed": [here.replace(b'"body":{', b'"body":{ '), after],
        "removed": [after],
        "doubled": [here, here, after],
        "swapped": [after, here],
        "garbage": [b"\xff\x00[\n", after],
    }[damage]
    path.write_bytes(b"".join(lines) + lines[-1])
    found = line + 1 if damage == "doubled" else line
    for look in (Ledger.open, Ledger.read):
        with pytest.raises(InvalidFile, match=f"line {found} of ") as caught:
            look(path)
        assert caught.value.value == found and "--fresh" in caught.value.way_out
    assert not list(path.parent.glob("*.torn-*"))


@pytest.mark.parametrize("text", ["", '{"n":1', "not a ledger"])
def test_a_file_without_a_study_is_refused(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(InvalidFile, match="does not begin with a study") as caught:
        Ledger.open(path)
    assert caught.value.value == str(path) and "--fresh" in caught.value.way_out
    assert path.read_text() == text


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_loses_nothing_that_was_written(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = path.read_bytes()
    real_write = os.write

    def full(descriptor: int, data: bytes = b"") -> int:
        if data and len(data) > 10:
            return real_write(descriptor, data[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Ledger.open(path) as ledger:
        monkeypatch.setattr(os, call, full)
        with pytest.raises(PlannerError, match="No space left on device") as caught:
            ledger.append("noise", {"seconds": 1.0, "more": "x" * 100})
        monkeypatch.undo()
        assert "8 records before it are safe" in str(caught.value)
        assert caught.value.value == str(path) and "free some space" in caught.value.way_out
        assert path.read_bytes() == before and len(ledger) == 8
        ledger.append("noise", {"seconds": 2.0})
    assert Ledger.read(path).bodies("noise") == [{"seconds": 2.0}]


def test_what_could_not_be_taken_back_is_taken_back_by_the_next_append(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Ledger.open(path) as ledger:
        monkeypatch.setattr(os, "fsync", broken)
        monkeypatch.setattr(os, "ftruncate", broken)
        with pytest.raises(PlannerError, match="Input/output error"):
            ledger.append("noise", {"seconds": 1.0})
        monkeypatch.undo()
        ledger.append("noise", {"seconds": 2.0})
    assert Ledger.read(path).bodies("noise") == [{"seconds": 2.0}]


def test_a_ledger_that_something_else_changes_is_refused(path: Path) -> None:
    with Ledger.open(path) as ledger:
        with path.open("ab") as file:
            file.write(b"a note\n")
        with pytest.raises(InvalidFile, match="changed by something else") as caught:
            ledger.append("noise", {})
    assert "--resume" in caught.value.way_out and path.read_bytes().endswith(b"a note\n")


def test_a_study_that_cannot_begin_leaves_the_old_one_in_place(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PlannerError, match="No space left"):
        Ledger.create(path, {"case": "new"}, fresh=True)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, f"{path.name}.lock"]
    Ledger.open(path).close()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PlannerError, match="cannot write ledger") as caught:
        Ledger.create(tmp_path / "file" / "ledger.jsonl", STUDY)
    assert "file" in str(caught.value.value) and "writable" in caught.value.way_out
    (tmp_path / "ledger.jsonl.lock").mkdir()
    with pytest.raises(PlannerError, match="cannot lock") as caught:
        Ledger.create(tmp_path / "ledger.jsonl", STUDY)
    assert "another one" in caught.value.way_out


def test_only_known_records_of_finite_numbers_are_written(path: Path) -> None:
    with Ledger.open(path) as ledger:
        with pytest.raises(UsageError, match="did you mean trial") as caught:
            ledger.append("trail", {})
        assert caught.value.value == "trail"
        with pytest.raises(PlannerError, match="cannot be written as JSON") as other:
            ledger.append("noise", {"seconds": float("nan")})
        assert other.value.value == "noise" and "finite" in other.value.way_out
    with pytest.raises(UsageError, match="not open for writing"):
        Ledger.read(path).append("noise", {})
    assert len(Ledger.read(path)) == 8


def test_a_reader_cannot_change_what_the_ledger_holds(path: Path) -> None:
    ledger = Ledger.read(path)
    ledger.bodies("start")[0]["number"] = 99
    ledger.study["case"] = "other"
    assert ledger.bodies("start")[0] == {"number": 0} and ledger.study == STUDY
