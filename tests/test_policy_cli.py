"""The commands on policies: what they print, where, and their exit codes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from planner.case.evidence import Evidence
from planner.case.goal import Goal
from planner.case.hit_rate import HitRate
from planner.cli.main import run
from planner.plans.plan import Plan
from planner.policy.file import document, dump, read_policy, schema, write_policy
from tests.policies import a_policy, a_predicted_policy, some_evidence
from tests.source import ROOT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "2s.yaml"
    write_policy(a_policy(), path)
    return path


def test_check_says_one_line_a_file(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(path), str(path)]) == 0
    said = capsys.readouterr()
    line = f"ok   {path}: certified, steps(20) > tea_cache(0.18)"
    assert said.out.splitlines() == [line, line] and said.err == ""


def test_check_looks_at_every_file_and_exits_6(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(dump(a_policy()).replace("0.18,", "0.19,"))
    assert run(["check", str(bad), str(path), str(bad)]) == 6
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1
    assert said.err.count(f"bad  {bad} was edited by hand or damaged") == 2


def test_check_of_a_missing_file_exits_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", str(tmp_path / "none.yaml")]) == 2
    assert "there is no file" in capsys.readouterr().err


def test_show_explains_a_policy(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", str(path)]) == 0
    said = capsys.readouterr().out
    for part in (
        "plan      steps(20) > tea_cache(0.18)",
        "2.69x faster, at least 2.62x: 1.9s instead of 5.12s (median of 32 rounds)",
        "ratio 0.3711 (at most 0.3817) to a reference of 5.12s "
        "(at most 5.3s, half of all calls within ±2.1%)",
        "holds while the untouched pipeline renders in at most 5.24s here",
        "mean LPIPS 0.0712, bound 0.0843, n 32",
        "reuse     tea_cache 45.0% (40.0% to 50.0%) of forwards, from 32 calls\n",
        "one-sided bounds on unseen prompts; 32 unseen prompts, alpha 0.05",
        "pays off after 1 image\n",
        "certified",
    ):
        assert part in said


def test_show_explains_what_was_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = some_evidence(certified=False).model_dump() | {"lpips": None}
    goal = Goal(budget_seconds=2.0)
    measured = a_policy(status="measured", goal=goal, evidence=Evidence.model_validate(fields))
    write_policy(measured, tmp_path / "measured.yaml")
    write_policy(a_predicted_policy(), tmp_path / "predicted.yaml")
    assert run(["show", str(tmp_path / "measured.yaml")]) == 0
    said = capsys.readouterr().out
    assert "quality not constrained" in said and "quality   not measured" in said
    assert "no certificate" in said
    assert run(["show", str(tmp_path / "predicted.yaml")]) == 0
    said = capsys.readouterr().out
    assert "evidence  none" in said and "predicted 2s (1.6s to 2.5s) instead of 5s" in said
    assert "steps: steps(20), 2s" in said and "rests on the datasheet alone" in said


def test_show_as_json_is_the_document(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == document(a_policy())


def test_diff_names_every_place_with_both_values(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Plan.of({"steps": {"num_inference_steps": 25}, "prompt_embedding_cache": {}})
    other = tmp_path / "3s.yaml"
    goal = Goal(budget_seconds=3.0, max_lpips=0.1, quality="balanced")
    write_policy(a_policy(plan=plan, goal=goal, artifacts={}), other)
    assert run(["diff", str(path), str(other)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "goal.budget: 2s → 3s" in lines
    assert "plan: steps > tea_cache → steps > prompt_embedding_cache" in lines
    assert "plan.steps.num_inference_steps: 20 → 25 (+25.0%)" in lines
    assert "plan.tea_cache.threshold: 0.18 → absent" in lines
    assert not [line for line in lines if line.startswith(("digest", "summary", "case"))]
    assert run(["diff", str(path), str(other), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"place": "goal.budget", "before": "2s", "after": "3s"} in found


def test_diff_of_a_policy_with_itself_says_so(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["diff", str(path), str(path)]) == 0
    assert capsys.readouterr().out == "the policies say the same\n"


def test_schema_is_printed_or_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema()
    assert run(["schema", "--out", str(tmp_path / "planner-v1.schema.json")]) == 0
    assert json.loads((tmp_path / "planner-v1.schema.json").read_text()) == schema()
    assert capsys.readouterr().out == ""


def test_the_committed_schema_is_the_current_one() -> None:
    committed = ROOT / "policies" / "planner-v1.schema.json"
    assert json.loads(committed.read_text()) == schema(), f"planner schema --out {committed}"


def test_every_committed_policy_is_whole_and_says_where_its_schema_lies() -> None:
    for file in (ROOT / "policies").rglob("*.yaml"):
        policy = read_policy(file)
        assert policy.status in ("certified", "predicted"), file
        relative = re.search(r"\$schema=(\S+)", file.read_text())
        assert relative and (file.parent / relative[1]).is_file(), file


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a policy for the small pipeline, which claims a ratio that nothing reaches."""
    from tests.tiny import tiny_case, tiny_flux

    fields = some_evidence().model_dump()
    fields["latency"]["ratio"] = {"value": 1e-6, "upper": 1e-6, "unit": "ratio"}
    fields["hit_rates"] = {
        "guidance_interval": {"value": 0.125, "low": 0.125, "high": 0.125, "calls": 32},
    }
    path = tmp_path_factory.mktemp("tiny") / "tiny.yaml"
    write_policy(a_policy(
        case=tiny_case(tiny_flux(), num_inference_steps=6), artifacts={},
        plan=Plan.of({"steps": {"num_inference_steps": 4}, "guidance_interval": {"stop": 0.7}}),
        evidence=Evidence.model_validate(fields),
    ), path)  # fmt: skip
    return path


MODEL = ["--model", "tests.tiny:tiny_flux"]


def test_generate_writes_an_image(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    out = tmp_path / "images" / "x.png"
    words = ["generate", "--policy", str(tiny), "--prompt", "a red circle", "--seed", "3"]
    assert run([*words, "--out", str(out), *MODEL]) == 0
    with Image.open(out) as image:
        assert image.size == (64, 64)
    first = out.read_bytes()
    assert run([*words, "--out", str(out), *MODEL]) == 0
    assert out.read_bytes() == first
    said = capsys.readouterr()
    assert said.out == "" and f"wrote {out}" in said.err


def test_generate_says_in_one_line_what_lies_outside_the_envelope(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = read_policy(tiny)
    device = file.case.device.model_copy(update={"threads": 999})
    case = file.case.model_copy(update={"device": device})
    write_policy(file.model_copy(update={"case": case}), tmp_path / "other.yaml")
    words = ["generate", "--policy", str(tmp_path / "other.yaml"), "--prompt", "a", *MODEL]
    assert run([*words, "--out", str(tmp_path / "x.png")]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert line.startswith("warning: ") and "measured with 999 threads" in line


def test_generate_says_in_one_line_what_is_reused_instead_of_what_was_expected(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evidence = read_policy(tiny).evidence
    assert evidence is not None
    rates = {"guidance_interval": HitRate(value=0.3, low=0.2, high=0.4, calls=32)}
    other = read_policy(tiny).model_copy(
        update={"evidence": evidence.model_copy(update={"hit_rates": rates})}
    )
    write_policy(other, tmp_path / "other.yaml")
    words = ["generate", "--policy", str(tmp_path / "other.yaml"), "--prompt", "a", *MODEL]
    assert run([*words, "--out", str(tmp_path / "x.png")]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert "guidance_interval reused 12.5% of its forwards; the policy expects 20.0% to" in line


def test_generate_imports_no_function_on_a_policys_word(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--policy", str(tiny), "--prompt", "a", "--out", str(tmp_path / "x.png")]
    assert run(words) == 2
    assert "does not load on a policy's word" in capsys.readouterr().err


def test_generate_refuses_a_policy_for_another_pipeline(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--policy", str(path), "--prompt", "a", "--out", str(tmp_path / "x.png")]
    assert run([*words, *MODEL]) == 5
    assert "transformer" in capsys.readouterr().err and not (tmp_path / "x.png").exists()


def test_verify_prints_one_document_and_exits_4_on_drift(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["verify", str(tiny), "--rounds", "5", "--prompt", "a red circle", *MODEL]
    assert run([*words, "--json"]) == 4
    said = capsys.readouterr()
    found: dict[str, Any] = json.loads(said.out)
    assert found["ratio"]["drifted"] is True and found["lpips"]["drifted"] is False
    assert "does not hold here (latency ratio is" in said.err and "round 5" in said.err


def test_verify_prints_what_it_found(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["verify", str(tiny), "--rounds", "1", "--prompt", "a red circle", *MODEL]
    assert run(words) == 0  # one round shows no drift
    said = capsys.readouterr().out
    assert "ratio to the untouched call" in said and "(stated: 1e-06, at most 1e-06)" in said
    assert "  guidance_interval reuses 12.5% of its forwards here; the policy expects 12.5%" in said
    assert "mean LPIPS over 1 images" in said and "nothing drifted in 1 rounds" in said
