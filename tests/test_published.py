"""Published rows are read line by line; what they say becomes work, or a reason why not."""

from pathlib import Path

import pytest

from planner.errors import InvalidFile, UsageError
from planner.prediction.anchors import learn, share
from planner.prediction.published import COLUMNS, Row, pairs, read
from planner.prediction.replay import SKIPS, Skipped, sample

GOOD = {
    "id": "one", "model": "SD1.5", "height": "512", "width": "512", "frames": "1", "steps": "20",
    "guidance": "2", "gpu": "RTX4090", "n_gpus": "1", "precision": "fp16", "compile": "n",
    "attention": "sdpa", "cache": "none", "offload": "none", "latency_s": "0.61",
    "scope": "pipeline", "peak_vram_gb": "2.62", "source": "github:a/b", "note": "",
    "batch": "1", "baseline_id": "", "vram_unit": "GiB", "confidence": "A",
}  # fmt: skip


def table(folder: Path, *rows: dict[str, str], columns: tuple[str, ...] = COLUMNS) -> Path:
    lines = [",".join(columns)]
    lines += [",".join((GOOD | row)[name] for name in columns) for row in rows]
    file = folder / "data.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def rows(folder: Path, *changes: dict[str, str]) -> list[Row]:
    return read(table(folder, *changes))[0]


def test_a_row_is_read_with_its_stack_kernel_and_memory(tmp_path: Path) -> None:
    one, two, three = rows(
        tmp_path, {}, {"compile": "y", "attention": "fa3", "vram_unit": "GB"},
        {"source": "github:sgl-project/sglang x"},
    )  # fmt: skip
    assert (one.stack, one.kernel, one.memory, one.seconds) == ("eager", "", 2.62, 0.61)
    assert (two.stack, two.kernel) == ("compiled", "flash3")
    assert two.memory == pytest.approx(2.62e9 / 2**30)
    assert three.stack == "engine"


def test_a_faulty_line_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    found, faulty = read(table(tmp_path, {}, {"latency_s": "fast"}, {"height": "-3"}, {}))
    assert len(found) == 2
    assert [str(one) for one in faulty] == [
        "line 3, column latency_s: this is no number ('fast')",
        "line 4, column height: this number is negative or not finite ('-3')",
    ]


def test_a_file_without_its_columns_is_refused_with_their_names(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="lacks the column steps, gpu") as refused:
        read(table(tmp_path, columns=tuple(c for c in COLUMNS if c not in ("steps", "gpu"))))
    assert "latency_s" in refused.value.way_out
    with pytest.raises(UsageError, match="there is no file"):
        read(tmp_path / "none.csv")


def test_pairs_are_rows_with_their_baseline_on_the_same_device(tmp_path: Path) -> None:
    found = rows(
        tmp_path, {}, {"id": "two", "baseline_id": "one", "compile": "y"},
        {"id": "three", "baseline_id": "one", "gpu": "T4"},
    )  # fmt: skip
    assert [(one.id, other.id) for one, other in pairs(found)] == [("two", "one")]


@pytest.mark.parametrize(("change", "reason"), [
    ({"model": "Midjourney"}, "unknown model"), ({"gpu": "H999"}, "unknown device"),
    ({"n_gpus": "4"}, "several GPUs"), ({"attention": "SVG sparse"}, "sparse attention"),
    ({"attention": "magic"}, "attention not stated"),
    ({"precision": "gguf Q2_k"}, "precision without a pass"),
    ({"precision": "bf16", "gpu": "T4"}, "the device lacks the precision"),
    ({"frames": "81"}, "the model refuses the size"), ({"steps": "0"}, "no size or time"),
])  # fmt: skip
def test_what_cannot_be_replayed_says_why(
    tmp_path: Path, change: dict[str, str], reason: str
) -> None:
    with pytest.raises(Skipped) as skipped:
        sample(rows(tmp_path, change)[0])
    assert skipped.value.reason == reason and reason in SKIPS


def test_a_row_becomes_the_work_that_its_clock_saw(tmp_path: Path) -> None:
    whole, loop, one_branch = (
        sample(row).work
        for row in rows(tmp_path, {}, {"scope": "denoise loop"}, {"guidance": "1"})
    )  # fmt: skip
    assert [p.name for p in whole.phases] == ["encode", "denoise", "decode"]
    assert [p.name for p in loop.phases] == ["denoise"] and loop.forwards == 20
    assert one_branch.phases[1].flops == pytest.approx(whole.phases[1].flops / 2, rel=0.01)


def test_anchors_give_back_the_shares_that_they_learned() -> None:
    seen = [
        ("TeaCache 0.2", True, 0.5), ("TeaCache 0.4", False, 0.5),
        ("DeepCache I=5,B=0", False, 0.36),
        ("MagCache", True, 0.4), ("MagCache", True, 0.5), ("MagCache", True, 0.9),
    ]  # fmt: skip
    known = learn(seen)
    assert share("TeaCache 0.2", True, known) == pytest.approx(0.5)
    assert share("TeaCache 0.1", True, known) == pytest.approx(1 / 1.5)
    assert share("TeaCache 0.4", False, known) == pytest.approx(0.5)
    assert share("DeepCache I=5,B=0", False, known) == pytest.approx(0.36)
    assert share("MagCache", True, known) == 0.5
    assert share("none", False, known) == 1.0 and share("Other", False, known) is None
