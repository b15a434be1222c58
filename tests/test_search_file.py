"""Search files are read strictly; what `planner init` writes reads back."""

from pathlib import Path
from typing import Any

import pytest

from planner.case.search_file import SearchFile, read_search
from planner.cli.init import search_text
from planner.errors import InvalidFile, UsageError
from planner.passes import registry
from planner.passes.base import domains
from tests.source import ROOT


def reading(folder: Path, text: str) -> SearchFile:
    """Write and read one search file."""
    path = folder / "search.yaml"
    path.write_text(text)
    return read_search(path)


def test_keys_mean_what_the_options_mean(tmp_path: Path) -> None:
    found = reading(
        tmp_path,
        """
model: shapes
budget: 2s
max_lpips: 0.05
with: [tea_cache]
without: [compile_blocks]
search_time: 10m
trials: 20
seed: 3
sampler: tpe
workload: {steps: 40, guidance: 5, batch: 2, call: {max_sequence_length: 16}}
domains:
  tea_cache:
    threshold: {low: 0.1, high: 0.3}
""",
    )
    assert (found.budget, found.max_lpips, found.search_time) == ("2s", "0.05", "10m")
    assert (found.with_passes, found.without_passes) == (("tea_cache",), ("compile_blocks",))
    assert (found.trials, found.seed, found.sampler) == (20, 3, "tpe")
    assert found.workload.model_dump(exclude_none=True) == {
        "steps": 40, "guidance": 5.0, "batch": 2, "call": {"max_sequence_length": 16},
    }  # fmt: skip
    assert found.narrowing == {"tea_cache": {"threshold": {"low": 0.1, "high": 0.3}}}


def test_an_empty_mapping_is_the_embedded_model_with_every_default(tmp_path: Path) -> None:
    assert reading(tmp_path, "{}") == SearchFile()


def test_paths_are_seen_from_the_folder_of_the_file(tmp_path: Path) -> None:
    found = reading(tmp_path, "prompts: prompts.txt\npath: ../code\n")
    assert found.prompts == str(tmp_path / "prompts.txt")
    assert found.path == str(tmp_path / "../code")


@pytest.mark.parametrize(
    ("text", "value", "way_out"),
    [
        ("budgt: 2s", "budgt", "did you mean budget?"),
        ("workload: {stps: 2}", "stps", "did you mean steps?"),
        ("domains: {tea_cache: {threshold: {lo: 1}}}", "lo", "did you mean low?"),
        ("budget: 2", "2", "write a number and a unit, like 2s or 850ms"),
        ("budget: soon", "soon", "write a number and a unit, like 2s or 850ms"),
        ("search_time: 10 parsecs", "10 parsecs", "use one of ms, s, m, min, h"),
        ("vram: 12 gigs", "12 gigs", "use one of B, KiB, MiB, GiB, TiB, kB, KB, MB, GB, TB"),
        ("prefer: haste", "haste", "input should be 'quality' or 'speed'"),
        ("sampler: random", "random", "input should be 'gp' or 'tpe'"),
        ("trials: 0", 0, "input should be greater than or equal to 1"),
        ("trials: '40'", "40", "input should be a valid integer"),
        ("seed: true", True, "input should be a valid integer"),
        ("with: tea_cache", "tea_cache", "input should be a valid array"),
        (
            "domains: {tea_cache: {threshold: {low: 2, high: 1}}}",
            1,
            "high is below low, which is 2",
        ),
        ("domains: {tea_cache: 1}", 1, "input should be an object"),
    ],
)
def test_a_wrong_value_is_refused_with_the_way_out(
    tmp_path: Path, text: str, value: Any, way_out: str
) -> None:
    with pytest.raises(InvalidFile) as caught:
        reading(tmp_path, text)
    assert caught.value.value == value
    assert caught.value.way_out == way_out
    assert str(tmp_path / "search.yaml") in caught.value.what


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        read_search(tmp_path / "search.yaml")


@pytest.mark.parametrize("model", ["shapes", "black-forest-labs/FLUX.1-dev", "./a b", "true"])
def test_what_init_writes_reads_back_as_the_model_asked_for(tmp_path: Path, model: str) -> None:
    path = tmp_path / "search.yaml"
    found = reading(tmp_path, search_text(model, path))
    assert found.model == model
    assert (found.budget, found.max_lpips) == ("2s", "balanced")
    assert (found.prompts is None) == (model == "shapes")


def test_every_domain_that_init_suggests_is_the_declared_one(tmp_path: Path) -> None:
    text = search_text("shapes", tmp_path / "search.yaml")
    start = text.index("# domains:")
    body = text[start:].replace("\n# ", "\n").removeprefix("# ")
    suggested = reading(tmp_path, body).narrowing
    declared = {
        one.name: {
            name: domain.model_dump(exclude_defaults=True, exclude={"integer"})
            for name, domain in found.items()
        }
        for one in registry.all_passes() if (found := domains(one.settings))
    }  # fmt: skip
    assert suggested == declared


@pytest.mark.parametrize("path", sorted((ROOT / "search").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_committed_search_files_read(path: Path) -> None:
    found = read_search(path)
    assert found.budget is not None
    for name, settings in found.domains.items():
        assert set(settings) <= set(registry.get(name).settings.model_fields)
