"""What is committed under policies/ can be read, has its page, and fits the model that ships."""

from pathlib import Path

import pytest

from planner.catalog.reader import workload_for
from planner.policy.file import read_policy
from planner.run.pipeline import PipelineSource, case_of, load_pipeline
from tests.source import ROOT

POLICIES = sorted((ROOT / "policies").rglob("*.yaml"))


def test_there_is_a_policy_for_the_embedded_model() -> None:
    assert ROOT / "policies" / "shapes" / "cpu" / "2s.yaml" in POLICIES


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_a_committed_policy_can_be_read_and_has_its_page(path: Path) -> None:
    policy = read_policy(path)
    where = path.relative_to(ROOT / "policies").with_suffix(".html")
    assert policy.status != "predicted" or policy.evidence is None
    assert policy.status == "predicted" or (ROOT / "reports" / where).exists()


@pytest.mark.parametrize("path", sorted((ROOT / "policies" / "shapes").rglob("*.yaml")),
                         ids=lambda path: path.stem)  # fmt: skip
def test_a_policy_for_the_embedded_model_is_for_the_weights_and_the_call_that_ship(
    path: Path,
) -> None:
    source, workload = PipelineSource(model="shapes", device="cpu"), workload_for("shapes")
    assert workload is not None
    live, policy = case_of(load_pipeline(source), source, workload), read_policy(path)
    assert policy.case.model.components == live.model.components
    assert policy.case.workload.call == live.workload.call
