"""Published rows are read line by line; what they say becomes work, or a reason why not."""

from pathlib import Path

import pytest

from planner.errors import InvalidFile, UsageError
from planner.prediction.anchors import learn, share
from planner.prediction.memory import Margin
from planner.prediction.protocols import printed
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
    ({"n_gpus": "4"}, "several GPUs"),
    ({"attention": "magic"}, "attention not stated"),
    ({"precision": "int4 W4A4 naive"}, "precision without a pass"),
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


def test_sparse_attention_is_a_technique_with_an_anchor(tmp_path: Path) -> None:
    one, two = rows(
        tmp_path, {"attention": "SVG sparse"}, {"attention": "SVG sparse", "cache": "TeaCache 0.2"}
    )
    assert (one.kernel, one.cache, two.cache) == ("", "SVG sparse", "SVG sparse + TeaCache 0.2")


def test_weights_that_are_only_stored_take_the_bits_of_their_format(tmp_path: Path) -> None:
    whole, eight, four = (
        sum(part.bytes for part in sample(row).work.parts if part.phase == "denoise")
        for row in rows(tmp_path, {}, {"precision": "int8 bnb"}, {"precision": "gguf Q4_K"})
    )  # fmt: skip
    assert four < eight < whole and four == pytest.approx(eight * 4.5 / 8)


@pytest.mark.parametrize(("label", "place"), [
    ("none", "device"), ("as needed (24GB)", "streamed"), ("sequential", "streamed"),
    ("low-vram", "host"),
])  # fmt: skip
def test_a_label_of_offloading_says_where_the_denoiser_rests(
    tmp_path: Path, label: str, place: str
) -> None:
    parts = sample(rows(tmp_path, {"offload": label})[0]).work.parts
    assert [part.place for part in parts if part.phase == "denoise"] == [place]


def seen(row: Row, lost: Margin) -> float:
    one = sample(row)
    return printed(row, one.work, one.loaded, one.card.memory_bytes, lost)


def test_a_figure_of_memory_counts_what_its_tool_sees(tmp_path: Path) -> None:
    lost = Margin(context=1e9, fragments=0.0, old=2.0)
    process, device, old, weights = (
        seen(row, lost) for row in rows(
            tmp_path, {}, {"vram_unit": "GiB (device level)"}, {"attention": "vanilla"},
            {"source": "huggingface.co/blog/quanto-diffusers"},
        )
    )  # fmt: skip
    assert device == pytest.approx(process + 1e9)
    assert weights < process < old


def test_weights_quantized_on_the_device_lay_there_whole(tmp_path: Path) -> None:
    lost = Margin(context=0.0, fragments=0.0)
    flux = {"model": "FLUX.1-dev", "precision": "fp8", "gpu": "H100-SXM", "guidance": "1"}
    after, since = (
        seen(row, lost) for row in rows(
            tmp_path, flux, flux | {"source": "github:sayakpaul/diffusers-torchao"},
        )
    )  # fmt: skip
    assert after < since


def test_fused_projections_are_held_beside_the_single_ones(tmp_path: Path) -> None:
    single, fused = (
        sum(part.bytes for part in sample(row).work.parts if part.phase == "denoise")
        for row in rows(tmp_path, {}, {"note": "fuse_qkv=True"})
    )  # fmt: skip
    assert 1.01 < fused / single < 1.3


def test_the_code_of_wans_authors_holds_float32_unless_it_converts(tmp_path: Path) -> None:
    wan = {"model": "Wan2.1-T2V-1.3B", "height": "480", "width": "832", "frames": "5",
           "gpu": "A800", "precision": "bf16", "source": "github:Wan-Video/Wan2.1"}  # fmt: skip
    exact, half = (
        sum(part.bytes for part in sample(row).work.parts if part.phase == "denoise")
        for row in rows(tmp_path, wan, wan | {"offload": "offload_model+convert_model_dtype"})
    )
    assert exact == pytest.approx(2 * half, rel=0.02)


@pytest.mark.parametrize(("note", "quantized"), [
    ("", []), ("transformer + T5 quantized", [2]), ("quanto DiT+TE1", [0]),
    ("quanto +text encoder quantized", [0, 1, 2]),
])  # fmt: skip
def test_a_note_names_the_encoders_that_are_quantized(
    tmp_path: Path, note: str, quantized: list[int]
) -> None:
    three = {"model": "SD3-medium", "precision": "int8 quanto"}
    plain, named = (
        [part.bytes for part in sample(row).work.parts if part.phase == "encode"]
        for row in rows(tmp_path, three, three | {"note": note})
    )  # fmt: skip
    assert [place for place in range(3) if named[place] < plain[place]] == quantized


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
