"""What is committed under policies/ can be read, has its page, and fits the model that ships."""

import hashlib
from pathlib import Path

import pytest

from planner.catalog.reader import workload_for
from planner.policy.file import read_policy
from planner.prediction.speeds import FITTED
from planner.reporting.caching_page import page
from planner.run.pipeline import PipelineSource, case_of, load_pipeline
from planner.tuning.bench.document import read_comparison
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


PREDICTED = [path for path in POLICIES if read_policy(path).status == "predicted"]


@pytest.mark.parametrize("path", PREDICTED, ids=lambda path: "-".join(path.parts[-3:]))
def test_a_committed_prediction_rests_on_the_constants_that_ship(path: Path) -> None:
    found = read_policy(path).prediction
    assert found is not None
    assert found.fit == hashlib.sha256(FITTED.read_bytes()).hexdigest(), "make predicted"


@pytest.mark.parametrize("path", sorted((ROOT / "reports").glob("caching.json")))
def test_a_committed_comparison_of_caches_has_its_own_page(path: Path) -> None:
    found = read_comparison(path)
    assert found.certified and not found.quick
    assert path.with_suffix(".md").read_text() == page(found)


def test_predictions_are_committed_for_the_cards_that_people_ask_about() -> None:
    names = {path.relative_to(ROOT / "policies").parent.as_posix() for path in PREDICTED}
    assert names >= {
        "flux.1-dev/rtx-4090", "flux.2-dev/b200", "flux.2-dev/rtx-5090", "qwen-image/h100-sxm",
        "qwen-image/h20", "sd3.5-large/rtx-4070", "wan2.2-t2v-a14b/h100-sxm",
    }  # fmt: skip


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
