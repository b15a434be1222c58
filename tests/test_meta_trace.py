"""The work of models that are not here, counted on the meta device."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from planner.case.work import Phase, Work
from planner.catalog import reader
from planner.errors import InvalidFile, UsageError
from planner.passes import registry
from planner.prediction import stages
from planner.prediction.counting import Counting, Scope, Tally
from planner.prediction.fused import on_meta
from planner.prediction.meta import entry_for, rounded_shape, shape_of, work_of
from planner.prediction.summary import products, summary
from planner.prediction.trace import trace
from tests.tiny import tiny_flux


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline as a folder without weights."""
    where: Path = tmp_path_factory.mktemp("traced")
    tiny_flux().save_pretrained(where)
    for file in where.rglob("*.safetensors"):
        file.unlink()
    return where


@pytest.fixture()
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def phases(work: Work) -> list[tuple[str, str | None, float]]:
    return [(phase.name, phase.branch, phase.calls) for phase in work.phases]


def added(phase: Phase, kind: str, what: str) -> float:
    return sum(getattr(op, what) for op in phase.operations if op.kind == kind)


def test_the_embedded_model_counts_as_a_real_call_of_it_does() -> None:
    from planner.run.pipeline import PipelineSource, load_pipeline

    workload = reader.workload_for("shapes")
    assert workload is not None
    pipe = load_pipeline(PipelineSource(model="shapes", device="cpu"))
    real, meta = trace(pipe, workload), work_of("shapes")
    assert phases(real) == phases(meta)
    for ours, theirs in zip(meta.phases, real.phases, strict=True):
        for kind in ("linear", "attention", "convolution", "normalisation", "elementwise"):
            assert added(ours, kind, "flops") == added(theirs, kind, "flops")
            assert added(ours, kind, "launches") == added(theirs, kind, "launches")
            assert added(ours, kind, "weights") == added(theirs, kind, "weights")
        moved = [sum(op.bytes for op in phase.operations) for phase in (ours, theirs)]
        assert moved[0] == pytest.approx(moved[1], rel=0.005)  # real attention keeps its sums too
        assert ours.peak == pytest.approx(theirs.peak, rel=0.15)
    assert sorted(map(str, real.parts)) == sorted(map(str, meta.parts))


def test_the_published_counts_of_two_models_are_met() -> None:
    qwen = work_of("qwen-image", height=1328, width=1328, steps=50)
    assert products(p for p in qwen.phases if p.name == "denoise") == pytest.approx(
        12_917.56, rel=0.01
    )
    assert qwen.forwards == 100
    flux = work_of("flux.1-dev", height=1024, width=1024, steps=50)
    assert products(p for p in flux.phases if p.name == "denoise") == pytest.approx(
        3_719.5, rel=0.01
    )
    assert flux.forwards == 50


def test_batched_guidance_is_one_call_of_twice_the_work() -> None:
    guided, free = work_of("sd1.5"), work_of("sd1.5", guidance=1.0)
    assert phases(guided)[:2] == [("encode", None, 2.0), ("denoise", None, 50.0)]
    assert phases(free)[:2] == [("encode", None, 1.0), ("denoise", None, 50.0)]
    assert added(guided.phases[1], "linear", "flops") == 2 * added(
        free.phases[1], "linear", "flops"
    )
    assert added(guided.phases[1], "linear", "weights") == added(
        free.phases[1], "linear", "weights"
    )
    facts = summary(entry_for("sd1.5"), shape_of(entry_for("sd1.5")), guided)
    assert (facts["forwards"], facts["denoiser_calls"]) == (100, 50)
    assert facts["tflops_per_forward"] == pytest.approx(0.8033, rel=0.01)


def test_sequential_guidance_is_two_phases_of_the_same_work() -> None:
    work = work_of("flux.2-klein-base-4b")
    assert phases(work)[1:3] == [("denoise", "cond", 50.0), ("denoise", "uncond", 50.0)]
    assert work.phases[1].operations == work.phases[2].operations


def test_two_experts_have_phases_of_their_own() -> None:
    work = work_of("wan2.2-t2v-a14b", height=480, width=832, frames=5, steps=40)
    assert phases(work)[1:5] == [
        ("denoise", "cond", 26.0), ("denoise", "uncond", 26.0),
        ("denoise", "cond", 14.0), ("denoise", "uncond", 14.0),
    ]  # fmt: skip
    assert [part.name for part in work.parts] == [
        "text_encoder", "transformer", "transformer_2", "vae"
    ]  # fmt: skip


def test_a_given_first_frame_is_encoded_once_beside_the_prompts() -> None:
    work = work_of("wan2.1-i2v-14b", height=480, width=832, frames=5)
    assert phases(work)[:2] == [("encode", None, 2.0), ("encode", None, 1.0)]
    places = {op.path.split(".")[0] for op in work.phases[1].operations}
    assert places == {"image_encoder", "vae"}


def test_weights_are_bytes_in_their_stored_format() -> None:
    parts = {part.name: part for part in work_of("flux.1-dev").parts}
    assert parts["transformer"].bytes == 2 * parts["transformer"].parameters
    sdxl = {part.name: part for part in work_of("sdxl").parts}
    assert sdxl["vae"].bytes == 4 * sdxl["vae"].parameters
    medium = {part.name: part for part in work_of("sd3.5-medium").parts}["transformer"]
    assert medium.bytes / 2 - medium.parameters == pytest.approx(0.2265e9, rel=0.001)


def test_peaks_hold_activations_but_no_matrix_of_scores() -> None:
    work = work_of("flux.1-dev")
    tokens, width = 4096 + 512, 3072
    stream = 2.0 * tokens * width
    assert 5 * stream < work.phases[1].peak < 2.0 * 24 * tokens**2
    image = 2.0 * 1024 * 1024 * 256  # the decoder's last convolutions at full size
    assert 2 * image < work.phases[-1].peak < 6 * image


def test_blocks_that_repeat_count_as_if_each_had_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def count() -> stages.Counted:
        entry = entry_for("sdxl")
        part = next(one for one in entry.components if one.phase == "denoise")
        stages.denoised.cache_clear()
        stage = stages.stage_of(part, entry.dtype, entry.id)
        return stages.denoised(stage, stages.Latent(1, 64, 64), 77, 1)

    once = count()
    monkeypatch.setattr(stages.Repeats, "watch", lambda *_: None)
    every = count()
    assert set(every.operations) == set(once.operations) and every.peak == once.peak
    stages.denoised.cache_clear()


def test_attention_is_counted_as_one_kernel_with_grouped_heads_too() -> None:
    counting, tally = Counting(Scope()), Tally()
    query, key = torch.empty(2, 8, 64, 32, device="meta"), torch.empty(2, 2, 96, 32, device="meta")
    attend = torch.nn.functional.scaled_dot_product_attention
    with torch.no_grad(), on_meta(), counting:
        counting.begin(tally)
        out = attend(query, key, key, enable_gqa=True)
        counting.end()
    assert out.shape == query.shape
    (operation,) = tally.operations()
    assert operation.kind == "attention" and operation.launches == 1
    assert operation.flops == 4 * 2 * 8 * 64 * 96 * 32
    assert tally.peak == pytest.approx(query.numel() * 4, rel=0.001)


def test_a_folder_without_weights_traces_without_an_entry(folder: Path) -> None:
    work = work_of(str(folder), height=64, width=64, steps=10, text_tokens=8)
    assert phases(work)[1:] == [("denoise", None, 10.0), ("decode", None, 1.0)]
    square, tokens = 2 * 32 * 32, 16 + 8
    assert sum(
        op.flops for op in work.phases[1].operations
        if op.path == "transformer_blocks.0.attn" and op.kind == "linear"
    ) == 4 * tokens * square  # fmt: skip


def test_another_number_format_changes_bytes_and_no_operations(folder: Path) -> None:
    size = {"height": 64, "width": 64, "text_tokens": 8}
    half, full = (work_of(str(folder), name, **size) for name in ("bfloat16", "float32"))
    for kind in ("linear", "attention"):
        assert added(half.phases[1], kind, "flops") == added(full.phases[1], kind, "flops")
    assert 2 * half.parts[0].bytes == full.parts[0].bytes
    assert half.phases[1].peak < full.phases[1].peak
    with pytest.raises(UsageError, match="no number format is called 'float8'"):
        work_of(str(folder), "float8", **size)


@pytest.mark.parametrize(
    ("model", "sizes", "said", "near"),
    [
        ("flux.1-dev", {"height": 1000}, "no height of 1000 pixels, which is no multiple of 16",
         "nearest that it takes is 992"),
        ("sana-1.6b", {"width": 1000}, "no multiple of 32", "992"),
        ("sd3.5-large", {"height": 4096}, "only up to 3072", "3072"),
        ("wan2.1-t2v-1.3b", {"frames": 80}, "only one more than a multiple of 4", "81"),
        ("mochi-1", {"frames": 200}, "at most 163 frames, not 200", "163"),
        ("sdxl", {"frames": 2}, "draws one image, not 2 frames", "1"),
        ("flux.1-dev", {"text_tokens": 600}, "no text of 600 tokens", "at most 512"),
        ("flux.1-dev", {"steps": 0}, "steps cannot be 0", "a shape has height"),
        ("flux.1-dev", {"hight": 512}, "hight cannot be 512", "a shape has height"),
        ("flux.1-def", {}, "no model is called 'flux.1-def'", "did you mean flux.1-dev?"),
    ],
)  # fmt: skip
def test_a_size_that_a_model_refuses_is_answered_with_the_nearest(
    model: str, sizes: dict[str, Any], said: str, near: str
) -> None:
    with pytest.raises(UsageError) as caught:
        work_of(model, **sizes)
    assert said in caught.value.what and near in caught.value.way_out
    assert str(caught.value.value) in caught.value.what


def test_published_sizes_are_rounded_as_pipelines_do() -> None:
    mochi = entry_for("mochi-1")
    shape = rounded_shape(mochi, shape_of(mochi, height=480, width=850, frames=84))
    assert (shape.height, shape.width, shape.frames) == (480, 848, 79)


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_a_config_that_cannot_be_built_is_refused_with_its_field(copy: Path) -> None:
    change(copy / "transformer" / "config.json", num_layers="two")
    with pytest.raises(InvalidFile, match="cannot be built with num_layers = 'two'") as caught:
        work_of(str(copy), height=64, width=64)
    assert caught.value.value == "two" and caught.value.way_out == "correct the field num_layers"


def test_a_config_that_builds_but_does_not_run_is_refused_with_the_class(copy: Path) -> None:
    change(copy / "transformer" / "config.json", axes_dims_rope=[4, 4, 4])
    with pytest.raises(InvalidFile, match="FluxTransformer2DModel cannot be run") as caught:
        work_of(str(copy), height=64, width=64, text_tokens=8)
    assert caught.value.value == "FluxTransformer2DModel" and "configs" in caught.value.way_out


def test_a_class_that_the_library_lacks_is_refused_by_name(copy: Path) -> None:
    change(copy / "model_index.json", transformer=["diffusers", "FluxTransformer3DModel"])
    with pytest.raises(InvalidFile, match="no class 'FluxTransformer3DModel'") as caught:
        work_of(str(copy))
    assert caught.value.way_out == "did you mean FluxTransformer2DModel?"


def test_a_denoiser_that_planner_cannot_call_is_refused_by_name(copy: Path) -> None:
    change(copy / "model_index.json", transformer=["diffusers", "AutoencoderKL"])
    with pytest.raises(UsageError, match="how a pipeline calls AutoencoderKL"):
        work_of(str(copy), height=64, width=64)


def test_another_pipeline_around_a_known_denoiser_traces_too(copy: Path) -> None:
    change(copy / "model_index.json", _class_name="MyFluxPipeline")
    assert work_of(str(copy), height=64, width=64, text_tokens=8).forwards > 0


def test_code_of_other_libraries_is_never_run(copy: Path) -> None:
    change(copy / "model_index.json", transformer=["my_pipeline", "MyTransformer"])
    with pytest.raises(InvalidFile, match="comes from my_pipeline") as caught:
        work_of(str(copy))
    assert caught.value.value == "my_pipeline"


def test_an_unknown_pipeline_class_is_refused_with_those_that_are_known(copy: Path) -> None:
    change(copy / "model_index.json", _class_name="MyPipeline", transformer=[None, None])
    with pytest.raises(UsageError, match="no model of the class MyPipeline") as caught:
        work_of(str(copy))
    assert "FluxPipeline" in caught.value.way_out


@pytest.mark.parametrize("name", ["model_index.json", "vae/config.json"])
def test_a_broken_folder_is_refused_with_the_file(copy: Path, name: str) -> None:
    (copy / name).write_text("{")
    with pytest.raises(InvalidFile, match=name) as caught:
        work_of(str(copy))
    assert caught.value.value == str(copy / name)


def test_a_folder_without_a_denoiser_is_refused(copy: Path) -> None:
    change(copy / "model_index.json", transformer=[None, None])
    with pytest.raises(UsageError, match="no component for the phase denoise"):
        work_of(str(copy))


def test_effects_know_that_two_experts_share_the_steps() -> None:
    work = work_of("wan2.2-t2v-a14b", height=480, width=832, frames=5, steps=40)
    steps, interval = registry.get("steps"), registry.get("guidance_interval")
    shorter = steps.effect(work, steps.settings(num_inference_steps=20), None)
    assert [phase.calls for phase in shorter.phases[1:5]] == [13, 13, 7, 7]
    guided = interval.effect(work, interval.settings(start=0.0, stop=0.5), None)
    assert [phase.calls for phase in guided.phases[1:5]] == [26, 20, 14, 0]
