"""What an import may load, asked of a fresh interpreter."""

import subprocess
import sys

HEAVY = {
    "torch", "diffusers", "transformers", "cache_dit", "optuna", "networkx", "matplotlib", "lpips",
    "scipy",
}  # fmt: skip


def loaded(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after some code."""
    script = f"import sys\n{code}\nprint('\\n' + ' '.join(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_importing_planner_loads_no_heavy_library() -> None:
    assert not loaded("import planner") & (HEAVY | {"pydantic", "yaml", "click"})


def test_the_help_of_the_command_line_loads_no_heavy_library() -> None:
    code = "from planner.cli.main import run\nassert run(['--help']) == 0"
    assert not loaded(code) & (HEAVY | {"pydantic"})


def test_listing_the_passes_loads_no_heavy_library() -> None:
    code = "from planner.cli.main import run\nassert run(['passes', '--json']) == 0"
    assert not loaded(code) & HEAVY


def test_reading_a_search_file_loads_no_heavy_library() -> None:
    code = (
        "from pathlib import Path\n"
        "from planner.case.search_file import read_search\n"
        "read_search(Path('search/shapes.yaml'))"
    )
    assert not loaded(code) & HEAVY


def test_the_names_of_the_passes_are_known_without_importing_one() -> None:
    found = loaded("from planner.passes import registry\nassert registry.names()")
    assert not {name for name in found if name.startswith("planner.passes.caching.")}
