"""The command line: whole outputs, exit codes, and one sentence for every failure."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import invalidate_caches
from pathlib import Path
from typing import Any

import pytest

from planner import __version__
from planner.cli.main import run
from planner.errors import NotCertified
from planner.passes import registry
from planner.plans.graph import build
from planner.tuning.space import space
from tests.cases import flux_case
from tests.source import PACKAGE, ROOT

COMMANDS = {"bench", "check", "diff", "doctor", "generate", "graph", "init", "lpips", "passes",
            "plan", "predict", "profile", "schema", "show", "trace", "tune",
            "verify"}  # fmt: skip
TINY = ("tests.tiny:tiny_flux", "--steps", "10")


def test_the_help_lists_every_command_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    listed = {line.split()[0] for line in shown.partition("Commands:\n")[2].splitlines()
              if line.startswith("  ") and line[2] != " "}  # fmt: skip
    assert listed == COMMANDS


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_a_help_page(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    assert f"Usage: planner {name}" in capsys.readouterr().out


def test_the_version_is_the_package_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"planner {__version__}\n"


def test_no_arguments_print_the_help_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("Usage: planner")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tun"], "planner: no command is called 'tun': did you mean tune?\n"),
        (["passes", "--famly"], "planner: no option is called '--famly': did you mean --family?\n"),
        (["passes", "teacache"],
         "planner: no pass is called 'teacache': did you mean tea_cache?\n"),
        (["passes", "--family", "cache"],
         "planner: no family is called 'cache': did you mean caching?\n"),
        (["lpips", "a.png"], "planner: Missing argument 'B': see `planner lpips --help`\n"),
    ],
)  # fmt: skip
def test_wrong_names_exit_with_2_and_the_nearest(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert capsys.readouterr() == ("", said)


def test_a_planner_error_exits_with_its_own_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "all_passes", _raising(NotCertified("none held", way_out="wait")))
    assert run(["passes"]) == 4
    assert capsys.readouterr().err == "planner: none held: wait\n"


def test_an_interrupt_exits_with_7_and_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "all_passes", _raising(KeyboardInterrupt()))
    assert run(["passes"]) == 7
    assert "planner tune --resume" in capsys.readouterr().err


def test_an_unexpected_error_is_one_sentence_and_a_traceback_only_if_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "all_passes", _raising(ZeroDivisionError("first\nsecond")))
    sentence = (
        "planner: unexpected ZeroDivisionError (first): "
        "`planner --debug …` (or PLANNER_DEBUG=1) shows the traceback\n"
    )
    assert run(["passes"]) == 1
    assert capsys.readouterr().err == sentence
    assert run(["--debug", "passes"]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("PLANNER_DEBUG", "1")
    assert run(["passes"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_warnings_nobody_can_act_on_are_dropped_and_all_others_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert run(["passes"]) == 0
    logger = logging.getLogger("torch.utils._pytree")
    logger.warning("%s is an Enum subclass and so on", "Kind")
    logger.warning("something else")
    assert "Enum" not in caplog.text and "something else" in caplog.text


def test_a_closed_pipe_ends_a_listing_quietly() -> None:
    script = f"{sys.executable} -m planner.cli.main passes | true"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert "Traceback" not in done.stderr


def test_passes_are_listed_in_plan_order_with_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["passes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["pass", "family", "stage", "fidelity", "owns"]
    shown = [line.split()[0] for line in lines[1:] if line and line[0] not in " `"]
    assert shown == [one.name for one in registry.all_passes()]
    assert any("needs guidance in a second forward" in line for line in lines)
    assert not any("lambda" in line for line in lines), "needs are named after what they ask"


def test_one_family_can_be_listed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["passes", "--family", "caching", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["name"] for one in found} >= {"first_block_cache", "tea_cache"}
    assert all(one["family"] == "caching" and one["source"] for one in found)


@pytest.mark.parametrize("name", sorted(registry.names()))
def test_the_page_of_a_pass_is_its_docstring_and_settings(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["passes", name]) == 0
    page = capsys.readouterr().out
    for heading in ("What it does", "When it helps", "What it costs", "When not", "Source"):
        assert heading in page
    for setting in registry.get(name).settings.model_fields:
        assert f"\n{setting} " in page


def test_the_graph_of_a_pipeline_names_every_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["graph", *TINY, "--why"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in registry.names())
    assert "guidance_interval needs guidance in a second forward" in shown
    line = next(one for one in shown.splitlines() if "each owns denoiser.step_reuse" in one)
    assert {"first_block_cache", "tea_cache", "step_mask"} <= set(re.findall(r"\w+", line))


def test_the_graph_is_one_json_document_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "graph.png"
    arguments = ["graph", *TINY, "--without", "steps", "--png", str(picture), "--json"]
    assert run(arguments) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert "steps" in found["excluded"] and "tea_cache" in found["legal"]
    assert picture.read_bytes().startswith(b"\x89PNG") and str(picture) in err


def test_a_search_file_names_the_model_of_the_graph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = tmp_path / "tiny.yaml"
    search.write_text(
        "model: tests.tiny:tiny_flux\nwithout: [steps]\n"
        "workload: {steps: 10, guidance: 3, call: {true_cfg_scale: 3.0, negative_prompt: ''}}\n"
    )
    assert run(["graph", "--search", str(search), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "tests.tiny:tiny_flux"
    assert "steps" in found["excluded"] and "guidance_interval" in found["legal"]


def test_a_model_without_known_steps_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["graph", "shaps"]) == 2
    said = capsys.readouterr().err
    assert "did you mean shapes?" in said and "needs at least --steps" in said


def test_init_writes_once_and_never_over_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "flux.yaml"
    assert run(["init", "org/flux", "--out", str(path)]) == 0
    assert 'model: "org/flux"' in path.read_text()
    assert f"planner tune --search {path}" in capsys.readouterr().err
    path.write_text("mine")
    assert run(["init", "org/flux", "--out", str(path)]) == 2
    assert path.read_text() == "mine" and "is there already" in capsys.readouterr().err


def test_lpips_prints_the_distance_of_two_images(capsys: pytest.CaptureFixture[str]) -> None:
    scene, near, far = (str(ROOT / "tests/images" / f"{n}.png") for n in ("scene", "near", "far"))
    for other, distance in ((near, 0.0273744), (far, 0.5149901)):  # by the lpips package itself
        assert run(["lpips", scene, other]) == 0
        assert capsys.readouterr().out == f"{distance:.3f}\n"
    assert run(["lpips", near, far, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lpips"] == pytest.approx(0.5212025, abs=2e-5)


def test_lpips_refuses_what_is_no_image(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lpips", "no.png", "no.png"]) == 6
    assert "no.png cannot be read as an image" in capsys.readouterr().err


PLANTED = '''"""Half of something, planted by a test.

What it does: nothing. When it helps: never. What it costs: nothing. When not: always.
Source: tests/test_cli.py.
"""

from planner.passes.base import Family, Fidelity, Pass, Settings, Stage, knob


class PlantedSettings(Settings):
    """One setting."""

    share: float = knob(0.5, "how much of it", low=0.1, high=0.9)


PASS = Pass(
    name="planted", family=Family.SAMPLING, stage=Stage.SAMPLING, fidelity=Fidelity.DIVERGENT,
    source="tests/test_cli.py", settings=PlantedSettings, owns=("test.planted",),
    effect=lambda work, settings, telemetry: work, batch_invariant=True,
)
'''


@pytest.fixture
def planted() -> Iterator[None]:
    """Drop a pass file into the package, and take every trace of it away afterwards."""
    path = PACKAGE / "passes" / "sampling" / "planted.py"
    path.write_text(PLANTED)
    _forget()
    try:
        yield
    finally:
        path.unlink()
        for cached in (path.parent / "__pycache__").glob("planted.*"):
            cached.unlink()
        sys.modules.pop("planner.passes.sampling.planted", None)
        _forget()


def test_a_dropped_pass_file_is_listed_judged_and_searched(
    planted: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["passes", "--json"]) == 0
    assert "planted" in {one["name"] for one in json.loads(capsys.readouterr().out)}
    graph = build(flux_case())
    assert "planted" in {one.name for one in graph.legal}
    assert any("planted" in stack for stack in graph.stacks())
    assert {"planted", "planted.share"} <= set(space(graph, graph.case))


@pytest.mark.parametrize("place, said", [
    ("stray.py", "is in no family's folder"), ("sampling/broken.py", "cannot be imported"),
])  # fmt: skip
def test_a_pass_file_that_is_misplaced_or_broken_is_named_and_not_passed_over(
    place: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = PACKAGE / "passes" / place
    path.write_text("import nothing_of_that_name\n")
    _forget()
    try:
        assert run(["passes"]) == 1
    finally:
        path.unlink()
        _forget()
    shown = capsys.readouterr().err
    assert said in shown and path.stem in shown


def _forget() -> None:
    invalidate_caches()
    registry.names.cache_clear()
    registry.get.cache_clear()


def _raising(error: BaseException) -> Any:
    def fail() -> Any:
        raise error

    return fail
