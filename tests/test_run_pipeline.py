"""Loading a pipeline and saying exactly which one it is."""

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from planner.errors import InvalidFile, UsageError
from planner.run.fingerprint import components_of, config_of, sampled_hash
from planner.run.pipeline import PipelineSource, case_of, load_pipeline, model_of
from planner.run.traits import guidance_of, traits_of
from tests.tiny import CALL, render, tiny_flux, tiny_workload

SOURCE = PipelineSource(model="tests.tiny:tiny_flux", device="cpu")


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_flux()


@pytest.fixture(scope="module")
def folder(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline as it lies on a disk, its transformer in 16 bit."""
    import torch

    where: Path = tmp_path_factory.mktemp("model")
    stored = tiny_flux()
    stored.transformer.to(torch.float16)
    stored.save_pretrained(where)
    return where


def test_a_folder_loads_as_the_pipeline_that_was_saved(
    pipe: Any, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    loaded = load_pipeline(PipelineSource(model=str(folder), device="cpu"))
    assert "it/s" not in capfd.readouterr().err, "reading weights drew a progress bar"
    assert type(loaded) is type(pipe) and loaded.transformer.dtype == torch.float32
    found, saved = components_of(loaded), components_of(pipe)
    assert found.keys() == saved.keys() and "image_encoder" not in found
    for name in found.keys() - {"transformer"}:
        assert found[name] == saved[name], name
    assert found["transformer"].config == saved["transformer"].config


def test_weights_stored_in_16_bit_hash_alike_however_they_are_loaded(folder: Path) -> None:
    wide = load_pipeline(PipelineSource(model=str(folder), device="cpu"))
    narrow = load_pipeline(PipelineSource(model=str(folder), device="cpu", dtype="float16"))
    assert sampled_hash(wide.transformer) == sampled_hash(narrow.transformer)
    # The text encoder was stored in 32 bit: in 16 its values are others.
    assert sampled_hash(wide.text_encoder) != sampled_hash(narrow.text_encoder)


def test_a_function_makes_a_pipeline_from_a_given_folder(tmp_path: Path) -> None:
    (tmp_path / "own_pipeline.py").write_text("from tests.tiny import tiny_flux as make\n")
    source = PipelineSource(model="own_pipeline:make", path=str(tmp_path), device="cpu")
    loaded = load_pipeline(source)
    assert model_of(loaded, source).id == "own_pipeline:make"


@pytest.mark.parametrize(
    ("name", "says"),
    [("tests.tiny:nothing", "cannot import"), ("no_such_module:make", "cannot import"),
     ("tests.tiny:tiny_workload", "returned a Workload"), ("shape", "did you mean shapes")],
)  # fmt: skip
def test_a_model_that_is_not_there_is_named_with_a_way_out(name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        load_pipeline(PipelineSource(model=name, device="cpu"))
    assert caught.value.value == name and caught.value.way_out


def test_a_hub_model_out_of_reach_is_named_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="from the Hub") as caught:
        load_pipeline(PipelineSource(model="nobody/nothing", device="cpu"))
    assert caught.value.value == "nobody/nothing" and "local folder" in caught.value.way_out


def test_a_folder_without_a_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match=r"holds no model_index\.json") as caught:
        load_pipeline(PipelineSource(model=str(tmp_path), device="cpu"))
    assert caught.value.value == str(tmp_path) and "save_pretrained" in caught.value.way_out


def test_a_broken_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(InvalidFile, match="cannot be loaded"):
        load_pipeline(PipelineSource(model=str(tmp_path), device="cpu"))


def test_a_fine_tune_is_not_its_base() -> None:
    import torch

    base = tiny_flux()
    before = components_of(base)
    with torch.no_grad():
        base.transformer.transformer_blocks[1].ff.net[2].weight.add_(1e-4)
    after = components_of(base)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"transformer"}
    assert before["transformer"].config == after["transformer"].config


def test_another_scheduler_setting_is_another_config(pipe: Any) -> None:
    own = type(pipe.scheduler)
    assert config_of(own()) == config_of(own(shift=1.0))
    assert config_of(own()) != config_of(own(shift=3.0))


def test_a_call_does_not_change_the_fingerprint(pipe: Any) -> None:
    before = components_of(pipe)
    render(pipe, num_inference_steps=1)
    assert components_of(pipe) == before


def test_another_vocabulary_is_another_tokenizer(pipe: Any) -> None:
    other = tiny_flux().tokenizer
    assert config_of(other) == config_of(pipe.tokenizer)
    other.add_tokens(["brandnew"])
    assert config_of(other) != config_of(pipe.tokenizer)


def test_weights_that_are_not_in_memory_cannot_be_matched() -> None:
    away = tiny_flux()
    away.transformer.to("meta")
    with pytest.raises(UsageError, match="weights of transformer are not in memory") as caught:
        components_of(away)
    assert caught.value.value == "transformer" and "offloading" in caught.value.way_out


def test_adapters_are_part_of_the_model(pipe: Any) -> None:
    assert model_of(pipe, SOURCE).adapters == ()
    adapted = tiny_flux()
    adapted.transformer.peft_config = {"style": object(), "detail": object()}
    assert model_of(adapted, SOURCE).adapters == ("transformer:detail", "transformer:style")


def test_the_commit_is_read_from_the_hub_cache_and_else_from_the_source(pipe: Any) -> None:
    named = SOURCE.model_copy(update={"revision": "main"})
    assert model_of(pipe, named).revision == "main"
    cached = tiny_flux()
    cached.register_to_config(_name_or_path=f"/cache/models--a--b/snapshots/{'0a' * 20}")
    assert model_of(cached, named).revision == "0a" * 20


def test_traits_name_blocks_and_branches_in_calling_order(pipe: Any) -> None:
    traits = traits_of(pipe)
    assert traits.denoiser == "transformer" and traits.blocks == 4
    assert traits.block_classes == ("FluxTransformerBlock", "FluxSingleTransformerBlock")
    assert traits.branches == ("cond", "uncond") and traits.cacheable and traits.compilable


def test_guidance_follows_the_arguments_of_the_call(pipe: Any) -> None:
    assert guidance_of(pipe, CALL) == "sequential"
    assert guidance_of(pipe, CALL | {"true_cfg_scale": 1.0}) == "none"
    assert guidance_of(pipe, CALL | {"negative_prompt": None}) == "none"
    distilled = tiny_flux()
    distilled.transformer.register_to_config(guidance_embeds=True)
    assert guidance_of(distilled, {"guidance_scale": 3.5}) == "embedded"


@pytest.mark.parametrize(("name", "guidance"), [
    ("ChromaPipeline", "sequential"), ("WanVideoToVideoPipeline", "sequential"),
    ("Lumina2Pipeline", "sequential"), ("Kandinsky5T2IPipeline", "sequential"),
    ("CogView4ControlPipeline", "sequential"), ("StableDiffusion3Pipeline", "batched"),
    ("StableDiffusionXLPipeline", "batched"), ("PixArtSigmaPipeline", "batched"),
    ("LTXPipeline", "batched"), ("WanPipeline", "sequential"), ("CogView4Pipeline", "sequential"),
])  # fmt: skip
def test_guidance_is_told_from_how_often_a_pipeline_calls_its_denoiser(
    name: str, guidance: str
) -> None:
    """Also of those that give their branches no names."""
    import diffusers

    kind = getattr(diffusers, name)
    part = "unet" if "XL" in name else "transformer"
    live = object.__new__(kind)
    vars(live)[part] = SimpleNamespace(config={})
    assert guidance_of(live, {"guidance_scale": 4.0}) == guidance
    assert guidance_of(live, {"guidance_scale": 1.0}) == "none"


def test_guidance_of_a_unet_pipeline_is_batched(pipe: Any) -> None:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, cross_attention_dim=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=2,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    old = StableDiffusionPipeline(
        vae=pipe.vae, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer, unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    assert guidance_of(old, {}) == "batched" and guidance_of(old, {"guidance_scale": 1.0}) == "none"
    traits = traits_of(old)
    assert traits.denoiser == "unet" and traits.branches == ()
    # Its blocks lie in no list that passes can work on, which `planner graph --why` says.
    assert traits.blocks == 0 and not traits.cacheable
    assert "negative_prompt" in traits.prompt_arguments


def test_the_case_believes_the_pipeline_and_not_the_workload() -> None:
    import torch

    half = tiny_flux().to(torch.bfloat16)
    told = tiny_workload(true_cfg_scale=1.0)
    case = case_of(half, SOURCE, told)
    assert (told.guidance, told.dtype) == ("sequential", "float32")
    assert (case.workload.guidance, case.workload.dtype) == ("none", "bfloat16")
    assert case.device.kind == "cpu" and case.model.pipeline == "FluxPipeline"
