"""The catalogue: strict, sourced, and silent about models that it does not know."""

from pathlib import Path

import pytest

from planner.catalog import reader
from planner.errors import InvalidFile, UsageError

ENTRY = reader._MODELS / "shapes.yaml"


def test_every_entry_reads_and_gives_a_source_for_every_fact() -> None:
    assert "shapes" in reader.known()
    for model in reader.known():
        entry = reader.entry(model)
        assert entry.id == model and entry.facts and all(fact.source for fact in entry.facts)


def test_other_models_have_no_workload_and_no_prompts() -> None:
    assert reader.workload_for("black-forest-labs/FLUX.1-dev") is None
    assert reader.prompts_for("black-forest-labs/FLUX.1-dev", "tune") is None
    with pytest.raises(UsageError, match="no model 'shape'") as caught:
        reader.entry("shape")
    assert caught.value.value == "shape" and caught.value.way_out == "did you mean shapes?"


def test_an_unknown_key_in_an_entry_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "shapes.yaml"
    file.write_text(ENTRY.read_text() + "surprise: 1\n")
    with pytest.raises(InvalidFile, match="surprise") as caught:
        reader.read_entry(file)
    assert caught.value.value == 1 and caught.value.way_out


def test_a_reference_call_with_a_missing_argument_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "workload.json"
    file.write_text('{"num_inference_steps": 50, "true_cfg_scale": 4.0, "negative_prompt": "",'
                    ' "height": 128, "width": 128}')  # fmt: skip
    with pytest.raises(InvalidFile, match="max_sequence_length"):
        reader.read_call(file)


def test_a_reference_call_reads_as_arguments(tmp_path: Path) -> None:
    file = tmp_path / "workload.json"
    file.write_text('{"num_inference_steps": 50, "true_cfg_scale": 4.0, "negative_prompt": "",'
                    ' "height": 128, "width": 128, "max_sequence_length": 16}')  # fmt: skip
    assert reader.read_call(file)["num_inference_steps"] == 50


def test_a_missing_model_folder_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reader, "_PACKAGE", tmp_path)
    for ask in (reader.shapes, lambda: reader.workload_for("shapes"),
                lambda: reader.prompts_for("shapes", "tune")):  # fmt: skip
        with pytest.raises(InvalidFile, match="is not there") as caught:
            ask()
        assert str(tmp_path) in str(caught.value.value) and "install" in caught.value.way_out


def test_prompts_are_the_lines_of_their_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = reader.entry("shapes").embedded
    assert found is not None
    monkeypatch.setattr(reader, "_PACKAGE", tmp_path)
    file = tmp_path / found.prompts["certify"]
    file.parent.mkdir(parents=True)
    file.write_text("a red circle\n\na blue star\n")
    assert reader.prompts_for("shapes", "certify") == ["a red circle", "a blue star"]


def test_the_embedded_model_has_its_call_and_captions_that_do_not_meet() -> None:
    workload = reader.workload_for("shapes")
    assert workload is not None and workload.steps == 50 and workload.forwards_per_step == 2
    tune, certify = (reader.prompts_for("shapes", split) or [] for split in ("tune", "certify"))
    assert len(set(tune)) == len(tune) >= 8 and len(set(certify)) == len(certify) >= 64
    assert not set(tune) & set(certify)
    assert (reader.shapes() / "model_index.json").is_file()
