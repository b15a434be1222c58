"""TeaCache's published polynomials: strict, sourced, and matched to one checkpoint each."""

from pathlib import Path

import pytest

from planner.case.model import Model, Traits
from planner.catalog import teacache
from planner.catalog.reader import entry, known
from planner.catalog.teacache import Table, published, tables, unpublished
from planner.errors import InvalidFile

OUTSIDE = {
    "flux.1-kontext-dev", "wan2.1-i2v-14b-480p", "ltx-video-0.9.1", "cogvideox-5b-i2v",
    "consisid", "cogvideox1.5-5b-i2v", "lumina-next", "lumina-image-2.0", "hidream-i1-full",
    "hidream-i1-dev", "hidream-i1-fast", "cosmos-1.0-7b", "tangoflux", "open-sora-1.2",
    "open-sora-plan-1.1", "latte",
}  # fmt: skip
"""Models with a polynomial that the catalogue does not have."""

ROW = """
some-model:
  repositories: [somebody/some-model]
  denoiser: SomeTransformer
  tables:
    - {indicator: modulated_input, coefficients: [0, 0, 0, 1, 0], source: a test}
"""


def a_model(name: str, denoiser: str, **others: object) -> Model:
    traits = Traits(denoiser="transformer", denoiser_class=denoiser)
    given = {"id": name, "pipeline": "APipeline", "components": {}, "traits": traits}
    return Model.model_validate(given | others)


def of(model: str, variant: str = "") -> Table:
    (found,) = (one for one in tables() if (one.model, one.variant) == (model, variant))
    return found


def test_every_table_has_a_source_five_numbers_and_rising_thresholds() -> None:
    assert len(tables()) == 33
    assert len({(one.model, one.variant) for one in tables()}) == 33
    for one in tables():
        values = [each.value for each in one.thresholds]
        seen = [each.speedup for each in one.thresholds if each.speedup]
        assert one.source and len(one.coefficients) == 5 and any(one.coefficients[:4])
        assert values == sorted(set(values)) and seen == sorted(set(seen)), one.model


def test_catalogued_models_are_named_as_the_catalogue_does() -> None:
    assert {one.model for one in tables()} - set(known()) == OUTSIDE
    for one in tables():
        if one.model not in OUTSIDE:
            found = entry(one.model)
            assert found.repository in one.repositories
            assert one.denoiser in {part.cls for part in found.components}
            assert published(a_model(one.model, one.denoiser)) or one.same_as


def test_numbers_that_two_models_share_say_whose_they_are() -> None:
    for one in tables():
        alike = {each.model for each in tables() if each.coefficients == one.coefficients}
        own = {each.model for each in tables()
               if each.coefficients == one.coefficients and each.same_as is None}  # fmt: skip
        assert len(own) == 1, f"{alike} share numbers and all but one must say whose"
        assert one.same_as == (None if one.model in own else next(iter(own)))


def test_flux_2_has_the_numbers_of_another_architecture_and_no_table_of_its_own() -> None:
    flux, wan = of("flux.2-dev"), of("wan2.1-i2v-14b-480p", "ret")
    assert flux.coefficients == wan.coefficients and flux.same_as == wan.model
    assert flux.denoiser != wan.denoiser
    assert published(a_model("black-forest-labs/FLUX.2-dev", flux.denoiser)) is None


def test_what_cannot_be_trusted_is_said() -> None:
    assert any("by hand" in one for one in of("qwen-image").remarks)
    lumina = [one for one in tables() if one.model == "lumina-image-2.0"]
    assert len({one.coefficients for one in lumina}) == 3
    assert all(any("no two agree" in each for each in one.remarks) for one in lumina)
    wan = [one for one in tables() if one.model.startswith("wan2.1")]
    assert len(wan) == 8 and {one.indicator for one in wan} == {"timestep_embedding"}


def test_the_highest_power_comes_first() -> None:
    a, b, c, d, e = of("flux.1-dev").coefficients
    assert 1e-4 * a + 1e-3 * b + 1e-2 * c + 1e-1 * d + e == pytest.approx(0.206847, abs=1e-6)


@pytest.mark.parametrize("name", ["flux.1-dev", "black-forest-labs/FLUX.1-dev",
                                  "black-forest-labs/flux.1-dev"])  # fmt: skip
def test_a_table_is_found_by_the_name_of_the_catalogue_or_of_the_hub(name: str) -> None:
    assert published(a_model(name, "FluxTransformer2DModel")) == of("flux.1-dev")


def test_a_model_s_default_comes_before_its_variants() -> None:
    found = published(a_model("Wan-AI/Wan2.1-T2V-14B-Diffusers", "WanTransformer3DModel"))
    assert found == of("wan2.1-t2v-14b")


def test_of_another_indicator_there_is_none_and_it_is_said_why() -> None:
    wan = a_model("Wan-AI/Wan2.1-T2V-14B-Diffusers", "WanTransformer3DModel")
    assert published(wan, "modulated_input") is None and published(wan, "timestep_embedding")
    assert unpublished(wan, "modulated_input") == (
        "coefficients of the modulated input; those published for "
        "Wan-AI/Wan2.1-T2V-14B-Diffusers are of the timestep embedding"
    )
    styled = a_model("flux.1-dev", "FluxTransformer2DModel", adapters=("transformer:style",))
    assert unpublished(styled, "modulated_input") == (
        "coefficients of this very checkpoint; none are published for flux.1-dev "
        "with transformer:style"
    )


@pytest.mark.parametrize(
    ("name", "denoiser", "others"),
    [
        ("black-forest-labs/FLUX.1-schnell", "FluxTransformer2DModel", {}),
        ("somebody/FLUX.1-dev", "FluxTransformer2DModel", {}),
        ("models/FLUX.1-dev", "FluxTransformer2DModel", {}),
        ("my_module:make", "FluxTransformer2DModel", {}),
        ("black-forest-labs/FLUX.1-dev", "NunchakuFluxTransformer2dModel", {}),
        ("black-forest-labs/FLUX.1-dev", "FluxTransformer2DModel", {"adapters": ("x:style",)}),
        ("Lightricks/LTX-Video", "LTXVideoTransformer3DModel", {}),
    ],
)
def test_another_checkpoint_has_none(name: str, denoiser: str, others: dict[str, object]) -> None:
    assert published(a_model(name, denoiser, **others)) is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("source: a test", "sauce: a test", "source is wrong"),
        ("source: a test", "source: a test, surprise: 1", "surprise is wrong"),
        ("[0, 0, 0, 1, 0]", "[0, 0, 1, 0]", "coefficients"),
        ("[0, 0, 0, 1, 0]", "[0, 0, 0, 0, 1, 0]", "coefficients"),
        ("modulated_input", "weather", "indicator is wrong"),
        ("denoiser: SomeTransformer", "denoisers: 1", "denoiser is wrong"),
        ("source: a test", "source: a test, thresholds: [{value: 0}]", "thresholds.0.value"),
    ],
)
def test_a_damaged_file_is_refused_by_place(old: str, new: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "teacache.yaml"
    file.write_text(ROW)
    (whole,) = teacache.read_tables(file)
    assert whole.coefficients == (0, 0, 0, 1, 0) and whole.repositories == ("somebody/some-model",)
    file.write_text(ROW.replace(old, new))
    with pytest.raises(InvalidFile, match=f"some-model: .*{said}") as caught:
        teacache.read_tables(file)
    assert caught.value.way_out.startswith("restore the file")
