"""The catalogue's real models: their sizes and operations are those of the released configs."""

from typing import Any

import pytest

from planner.catalog import reader
from planner.catalog.entry import Component, Entry, Experts
from planner.errors import InvalidFile, UsageError
from planner.prediction import stages
from planner.prediction.inputs import builder_for
from planner.prediction.latents import latent_of
from planner.prediction.meta import shape_of
from planner.prediction.stages import Stage, stage_of
from planner.prediction.summary import PRODUCTS
from tests.reference import DECODES, DENOISERS, OTHER_SHAPES, PARTS, PUBLISHED

REAL = [name for name in reader.known() if not reader.is_embedded(name)]
TEXT_PARTS = {"qwen2.5-vl-7b": 7_070_619_136, "mistral-small-24b": 23_572_403_200}
"""Encoders with a vision tower: parameters of the language model that the source counts."""


def staged(entry: Entry, phase: str) -> list[Stage]:
    return [stage_of(part, entry.dtype, entry.id) for part in entry.components
            if part.phase == phase]  # fmt: skip


def tflops(counted: stages.Counted) -> float:
    return sum(op.flops for op in counted.operations if op.kind in PRODUCTS) / 1e12


def forward(name: str, **sizes: Any) -> float:
    """TFLOPs of one denoiser call at batch 1."""
    entry = reader.entry(name)
    shape, denoiser = shape_of(entry, **sizes), staged(entry, "denoise")[0]
    patch = builder_for(denoiser.part.cls).patch
    latent = latent_of(staged(entry, "decode")[0].module, patch, shape, entry.limits, name)
    return tflops(stages.denoised(denoiser, latent, shape.text_tokens, 1))


def test_every_real_model_is_held_against_a_reference() -> None:
    klein_base = {"flux.2-klein-base-4b", "flux.2-klein-base-9b"}  # the denoisers of klein
    assert set(REAL) == DENOISERS.keys() | klein_base


@pytest.mark.parametrize("name", sorted(DENOISERS))
def test_parameters_and_operations_of_a_denoiser_are_the_released_ones(name: str) -> None:
    parameters, expected, sizes = DENOISERS[name]
    for denoiser in staged(reader.entry(name), "denoise"):
        assert stages.weights(denoiser).parameters == pytest.approx(parameters, rel=1e-3)
    assert forward(name, **sizes) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("name", "expected", "sizes"), OTHER_SHAPES)
def test_other_sizes_agree_as_well(name: str, expected: float, sizes: dict[str, Any]) -> None:
    assert forward(name, **sizes) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", sorted(PARTS))
def test_shared_parts_have_the_parameters_of_their_release(name: str) -> None:
    part = reader._filled(Component(name="part", phase="encode", uses=name))
    found = stages.weights(stage_of(part, "bfloat16", name))
    assert found.parameters == pytest.approx(PARTS[name], rel=1e-3)


@pytest.mark.parametrize("name", sorted(TEXT_PARTS))
def test_language_models_beside_a_vision_tower_have_theirs(name: str) -> None:
    part = reader._filled(Component(name="part", phase="encode", uses=name))
    module = stage_of(part, "bfloat16", name).module
    text = sum(weight.numel() for weight in module.model.language_model.parameters())
    head = module.lm_head.weight.numel() if name.startswith("mistral") else 0
    assert text + head == pytest.approx(TEXT_PARTS[name], rel=1e-3)


def test_every_shared_part_is_used_and_every_encoder_is_checked() -> None:
    used = {part.uses for name in REAL for part in reader.entry(name).components if part.uses}
    assert used == {file.stem for file in reader._PARTS.glob("*.yaml")}
    assert used - PARTS.keys() - TEXT_PARTS.keys() == {"clip-l-projection", "openclip-h"}


@pytest.mark.parametrize("name", sorted(DECODES))
def test_a_decode_has_the_operations_that_others_counted(name: str) -> None:
    entry = reader.entry(name)
    shape, vae = shape_of(entry), staged(entry, "decode")[0]
    latent = latent_of(vae.module, 1, shape, entry.limits, name)
    assert tflops(stages.decoded(vae, latent, 1)) == pytest.approx(DECODES[name], rel=0.01)


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_of_published_measurements_lead_to_an_entry(name: str) -> None:
    found = reader.published_as(name)
    assert found is not None and name in reader.entry(found).published


def test_a_name_that_nobody_published_leads_nowhere_and_none_leads_to_two_entries() -> None:
    assert reader.published_as("Kolors") is None
    names = [one for name in REAL for one in reader.entry(name).published]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", REAL)
def test_an_entry_is_whole(name: str) -> None:
    entry = reader.entry(name)
    assert entry.repository.count("/") == 1 and entry.licence and entry.workload is not None
    assert all(released.source and released.steps for released in entry.distilled)
    phases = [part.phase for part in entry.components]
    assert phases.count("decode") == 1 and {"encode", "denoise"} <= set(phases)
    assert (entry.experts is not None) == (phases.count("denoise") == 2)
    workload = reader.workload_for(name)
    assert workload is not None and workload.steps == entry.workload.steps
    assert reader.prompts_for(name, "tune") is None


def test_experts_share_the_steps_at_their_boundary() -> None:
    text, image = Experts(boundary=0.875, shift=12.0), Experts(boundary=0.9, shift=5.0)
    assert (text.first(40), image.first(40)) == (26, 15)
    assert text.first(1) == 1 and 0 < image.first(4) < 4


def test_a_catalogued_model_without_weights_is_refused_with_its_hub_id() -> None:
    with pytest.raises(UsageError, match="not in the package") as caught:
        reader.folder_of("flux.1-dev")
    assert "black-forest-labs/FLUX.1-dev" in caught.value.way_out


def test_an_unknown_shared_part_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="no part 'clip-m'") as caught:
        reader._filled(Component(name="text_encoder", phase="encode", uses="clip-m"))
    assert caught.value.way_out == "did you mean clip-l?"


def test_an_entry_without_weights_and_components_is_refused(tmp_path: Any) -> None:
    file = tmp_path / "shapes.yaml"
    text = (reader._MODELS / "shapes.yaml").read_text()
    file.write_text(text.partition("embedded:")[0] + "guidance: none\ndtype: float32\nfacts: []\n")
    with pytest.raises(InvalidFile, match="components, defaults and limits"):
        reader.read_entry(file)
