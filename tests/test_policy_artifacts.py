"""Artifacts too long for a policy: written beside it, named by their sha256, refused if changed."""

import json
from pathlib import Path
from typing import Any

import pytest

from planner.errors import InvalidFile
from planner.policy import artifacts
from planner.policy.file import PolicyFile, document, read_policy, write_policy
from tests.policies import a_policy


def long_artifact() -> dict[str, Any]:
    return {
        "coefficients": [float(i) / 7 for i in range(500)], "layers": list(range(-400, 400)),
        "mixed": [1, 2.5] * 9, "deep": {"names": ["a", "b"], "table": [[0.1] * 12, [0.2] * 12]},
        "empty": [], "none": None, "yes": True,
    }  # fmt: skip


def exact(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def written(tmp_path: Path, policy: PolicyFile) -> Path:
    path = tmp_path / "2s.yaml"
    write_policy(policy, path)
    return path


def test_a_long_artifact_stands_beside_the_policy_under_its_sha256(tmp_path: Path) -> None:
    policy = a_policy(artifacts={"tea_cache": long_artifact()})
    path = written(tmp_path, policy)
    (beside,) = tmp_path.glob("*.safetensors")
    assert beside.name == artifacts.file_name(beside.read_bytes())
    assert document(policy)["plan"][1]["artifact"] == beside.name
    found = read_policy(path)
    assert found == policy
    assert exact(found.artifacts()["tea_cache"]) == exact(long_artifact())


def test_safetensors_itself_reads_a_long_artifact(tmp_path: Path) -> None:
    from safetensors import deserialize

    found = dict(deserialize(artifacts.encode(long_artifact())))
    assert found["0"]["dtype"] == "F64" and found["0"]["shape"] == [500]
    assert found["1"]["dtype"] == "I64" and found["1"]["shape"] == [800]


@pytest.mark.parametrize("damage", ["missing", "changed", "truncated"])
def test_a_long_artifact_that_is_not_the_named_one_is_refused(tmp_path: Path, damage: str) -> None:
    path = written(tmp_path, a_policy(artifacts={"tea_cache": long_artifact()}))
    (beside,) = tmp_path.glob("*.safetensors")
    content = beside.read_bytes()
    if damage == "missing":
        beside.unlink()
    else:
        beside.write_bytes(content[:-1] + b"\x01" if damage == "changed" else content[:-8])
    with pytest.raises(InvalidFile, match="put the file back beside the policy") as caught:
        read_policy(path)
    assert str(beside) in caught.value.what


@pytest.mark.parametrize("content", [
    b"", b"\x00" * 8, b"\xff" * 32, b"\x02" + b"\x00" * 7 + b"{}", b"\x02" + b"\x00" * 7 + b"[]",
])  # fmt: skip
def test_a_file_of_the_right_name_that_is_no_artifact_is_refused(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / artifacts.file_name(content)
    path.write_bytes(content)
    with pytest.raises(InvalidFile, match="holds no artifact of planner"):
        artifacts.read(path)
