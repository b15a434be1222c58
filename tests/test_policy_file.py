"""The policy file: deterministic text, strict reading, artifacts beside it, schema."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from planner import strict_yaml
from planner.case.goal import Goal
from planner.case.noun import digest
from planner.errors import InvalidFile, UsageError
from planner.plans.plan import Plan
from planner.policy.asked import read_goal, write_goal
from planner.policy.file import PolicyFile, document, dump, read_policy, schema, write_policy
from planner.policy.text import to_yaml
from tests.policies import a_policy, a_predicted_policy, some_evidence


def written(tmp_path: Path, policy: PolicyFile) -> Path:
    path = tmp_path / "2s.yaml"
    write_policy(policy, path)
    return path


def refused(tmp_path: Path, text: str) -> InvalidFile:
    path = tmp_path / "edited.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidFile) as caught:
        read_policy(path)
    assert str(path) in str(caught.value) and caught.value.way_out
    return caught.value


def resealed(tmp_path: Path, change: Any) -> InvalidFile:
    """Change a policy's document, give it a fitting digest, and read it."""
    body = document(a_policy())
    del body["digest"]
    change(body)
    return refused(tmp_path, to_yaml(body | {"digest": digest(body)}))


def test_a_policy_reads_back_as_it_was_written(tmp_path: Path) -> None:
    policy = a_policy()
    assert read_policy(written(tmp_path, policy)) == policy


@pytest.mark.parametrize("status", ["measured", "predicted"])
def test_a_policy_without_certificate_reads_back(tmp_path: Path, status: str) -> None:
    measured = {"status": "measured", "evidence": some_evidence(certified=False)}
    make = a_policy if status == "measured" else a_predicted_policy
    policy = make(**(measured if status == "measured" else {}), plan=Plan(), artifacts={})
    assert read_policy(written(tmp_path, policy)) == policy


def test_the_same_policy_gives_the_same_bytes(tmp_path: Path) -> None:
    text = dump(a_policy())
    assert written(tmp_path, a_policy()).read_bytes() == text.encode()
    assert dump(read_policy(tmp_path / "2s.yaml")) == text


def test_the_text_means_the_same_in_yaml_1_1_and_1_2() -> None:
    policy = a_policy()
    text = dump(policy)
    assert yaml.safe_load(text) == document(policy)
    assert strict_yaml.load(text, where="it") == document(policy)


def test_keys_stand_in_a_readers_order_and_the_schema_in_the_first_line() -> None:
    lines = dump(a_policy()).splitlines()
    assert lines[0] == "# yaml-language-server: $schema=../../planner-v1.schema.json"
    keys = [line.partition(":")[0] for line in lines if line[0] not in " #"]
    assert keys == ["apiVersion", "kind", "status", "summary", "goal", "plan", "case", "evidence",
                    "provenance", "digest"]  # fmt: skip
    assert "  budget: 2s" in lines


@pytest.mark.parametrize("text", [
    "", "no", "On", "null", "~", "1e5", "012", "1:30", "0x1f", ".5", "-", "- a", "a: b", "a #b",
    "'", '"', "\\", "{", "[a]", "*a", "&a", "!a", "%", "@", "`", "a\nb", "\ttab", " lead", "trail ",
    "é", "日本", "\x00", "\x7f", "\x85", "\u2028", "\ufeff", "🎨", "2026-11-22", "<<", "?", "=",
    "deadbeefcafe", "2.14.1", "y", "none",
])  # fmt: skip
def test_every_string_survives_both_yaml_versions(text: str) -> None:
    value = {"key": text, "list": [text, "b"], "map": {"k": {text or "k": text}}}
    assert yaml.safe_load(to_yaml(value)) == value
    assert strict_yaml.load(to_yaml(value), where="it") == value


@pytest.mark.parametrize("number", [0.0, -0.0, 1e-7, 1.5e300, 5e-324, 1e16, 0.1, 3, -4, 10**30])
def test_every_number_survives_both_yaml_versions(number: float) -> None:
    for read in (yaml.safe_load, lambda text: strict_yaml.load(text, where="it")):
        found = read(to_yaml({"a": number, "b": [number] * 20}))
        assert repr(found) == repr({"a": number, "b": [number] * 20})


@pytest.mark.parametrize("goal", [
    Goal(budget_seconds=2.0, max_lpips=0.1, quality="balanced"),
    Goal(budget_seconds=1.23456789, vram_bytes=12 << 30),
    Goal(budget_seconds=1e-05, vram_bytes=123456789, prefer="speed", max_lpips=0.05),
])  # fmt: skip
def test_a_goal_in_units_reads_back_exactly(goal: Goal) -> None:
    assert read_goal(write_goal(goal), where="it") == goal


def test_a_lifted_cap_is_written_in_words() -> None:
    policy = a_policy(goal=Goal(budget_seconds=2.0))
    assert document(policy)["goal"]["max_lpips"] == "none"
    assert "quality not constrained" in policy.summary


def test_a_hand_edit_is_refused(tmp_path: Path) -> None:
    edited = dump(a_policy()).replace("threshold: 0.18", "threshold: 0.3")
    error = refused(tmp_path, edited)
    assert "edited by hand or damaged" in error.what
    assert error.way_out == "restore the file from where it came, or tune again"


def test_comments_and_the_order_of_keys_are_free(tmp_path: Path) -> None:
    policy = a_policy()
    reversed_ = dict(reversed(document(policy).items()))
    path = tmp_path / "other.yaml"
    path.write_text("# reviewed by me\n" + to_yaml(reversed_))
    assert read_policy(path) == policy


def test_an_unknown_key_comes_with_the_nearest_one(tmp_path: Path) -> None:
    error = refused(tmp_path, dump(a_policy()).replace("status: certified", "statsu: certified"))
    assert "no key is called 'statsu'" in error.what and error.way_out == "did you mean status?"


@pytest.mark.parametrize(("old", "new", "nearest"), [
    ("  budget: 2s", "  bugdet: 2s", "budget"),
    ("    rounds: 32", "    runds: 32", "rounds"),
    ("        class_name: Euler", "        class: Euler", "class_name"),
    ("    settings: {num", "    setings: {num", "settings"),
    ("{value: 1.9, upper:", "{value: 1.9, uper:", "upper"),
])  # fmt: skip
def test_unknown_keys_are_named_at_any_depth(
    tmp_path: Path, old: str, new: str, nearest: str
) -> None:
    text = dump(a_policy())
    assert old in text
    assert refused(tmp_path, text.replace(old, new, 1)).way_out == f"did you mean {nearest}?"


def test_values_are_not_coerced(tmp_path: Path) -> None:
    text = dump(a_policy())
    error = refused(tmp_path, text.replace("    rounds: 32", '    rounds: "32"', 1))
    assert "evidence.latency.rounds cannot be '32'" in error.what
    error = refused(tmp_path, text.replace("cacheable: true", "cacheable: 1", 1))
    assert "case.model.traits.cacheable cannot be 1" in error.what


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    error = refused(tmp_path, dump(a_policy()).replace("    rounds: 32\n", "", 1))
    assert "evidence.latency.rounds is missing" in error.what


def test_a_newer_version_is_refused_in_a_sentence(tmp_path: Path) -> None:
    error = refused(tmp_path, dump(a_policy()).replace("planner/v1", "planner/v2", 1))
    assert "is of version 'planner/v2'; this planner reads planner/v1" in error.what
    assert error.value == "planner/v2" and "upgrade planner" in error.way_out


def test_another_yaml_file_is_no_policy(tmp_path: Path) -> None:
    error = refused(tmp_path, "model: shapes\nbudget: 2s\n")
    assert "is no policy: it has no apiVersion" in error.what


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    written(tmp_path, a_policy())
    with pytest.raises(UsageError, match="did you mean"):
        read_policy(tmp_path / "2x.yaml")


def test_a_pass_that_is_not_installed_is_named_with_the_nearest(tmp_path: Path) -> None:
    error = resealed(tmp_path, lambda body: body["plan"][1].update(name="teacache"))
    assert "no pass is called 'teacache'" in error.what
    assert error.way_out == "did you mean tea_cache?"


def test_a_setting_out_of_range_is_named(tmp_path: Path) -> None:
    error = resealed(tmp_path, lambda body: body["plan"][1]["settings"].update(threshold=-1.0))
    assert "tea_cache.threshold cannot be -1.0" in error.what


def test_a_setting_of_another_type_is_refused_even_where_it_could_be_coerced(
    tmp_path: Path,
) -> None:
    change = {"num_inference_steps": "20"}
    error = resealed(tmp_path, lambda body: body["plan"][0]["settings"].update(change))
    assert "steps.num_inference_steps is '20', which means 20" in error.what


def test_passes_in_another_order_are_refused(tmp_path: Path) -> None:
    error = resealed(tmp_path, lambda body: body["plan"].reverse())
    assert "tea_cache, steps" in error.what and "put on as steps, tea_cache" in error.way_out


def test_a_measured_plan_without_what_its_calibration_learned_is_refused(tmp_path: Path) -> None:
    error = resealed(tmp_path, lambda body: body["plan"][1].pop("artifact"))
    assert "tea_cache has no artifact" in error.what


def test_a_mask_that_is_written_out_needs_no_artifact(tmp_path: Path) -> None:
    plan = Plan.of({"step_mask": {"mask": "1010101010"}})
    found = read_policy(written(tmp_path, a_policy(plan=plan, artifacts={})))
    assert found.plan[0].artifact is None
    error = refused(tmp_path, dump(a_policy(plan=Plan.of({"step_mask": {}}), artifacts={})))
    assert "step_mask has no artifact" in error.what


def test_a_policy_cannot_claim_more_than_its_evidence(tmp_path: Path) -> None:
    error = resealed(tmp_path, lambda body: body["evidence"].pop("certificate"))
    assert "certified policy needs a certificate" in error.what
    error = resealed(tmp_path, lambda body: body.pop("evidence"))
    assert "certified policy needs evidence" in error.what


def test_an_unreadable_quantity_in_the_goal_is_named(tmp_path: Path) -> None:
    error = resealed(tmp_path, lambda body: body["goal"].update(budget="2 parsecs"))
    assert "in goal, unknown unit 'parsecs'" in error.what


def test_an_artifact_file_cannot_be_named_by_a_path(tmp_path: Path) -> None:
    name = "../" + "0" * 64 + ".safetensors"
    error = resealed(tmp_path, lambda body: body["plan"][1].update(artifact=name))
    assert "plan.1.artifact" in error.what


def test_the_schema_knows_every_key_that_a_policy_writes() -> None:
    found = schema()
    assert found["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert "$defs" not in json.dumps(found) and "prefixItems" not in json.dumps(found)

    def resolved(part: dict[str, Any]) -> list[dict[str, Any]]:
        if "$ref" in part:
            return resolved(found["definitions"][part["$ref"].removeprefix("#/definitions/")])
        return [inner for each in part.get("anyOf", [part]) for inner in (
            resolved(each) if "$ref" in each else [each])]  # fmt: skip

    def walk(value: Any, part: dict[str, Any]) -> None:
        if isinstance(value, dict):
            kinds = [kind for kind in resolved(part) if kind.get("type") == "object"]
            assert kinds
            for key, inner in value.items():
                known = kinds[0].get("properties", {})
                if known:
                    assert key in known and kinds[0]["additionalProperties"] is False
                    walk(inner, known[key])

    walk(document(a_policy()), found)
    assert {"apiVersion", "kind", "status", "digest"} <= set(found["required"])
