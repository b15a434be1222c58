"""Loading and applying a policy on a small real pipeline."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import planner
from planner.case.case import Case
from planner.case.model import Component
from planner.errors import PolicyDoesNotFit, UsageError
from planner.plans.plan import Plan
from planner.policy.file import PolicyFile, write_policy
from planner.policy.runtime import Policy, PolicyWarning, check, load
from planner.run.expected import UnexpectedReuseWarning
from tests.policies import a_policy, a_predicted_policy, some_evidence
from tests.tiny import render, tiny_case, tiny_flux

PLAN = Plan.of({"steps": {"num_inference_steps": 4}})


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_flux()


@pytest.fixture(scope="module")
def case(pipe: Any) -> Case:
    return tiny_case(pipe)


def policy_for(case: Case, **changes: Any) -> PolicyFile:
    return a_policy(**{"case": case, "plan": PLAN, "artifacts": {}} | changes)


def predicted_for(case: Case, **changes: Any) -> PolicyFile:
    return a_predicted_policy(**{"case": case, "plan": PLAN, "artifacts": {}} | changes)


@pytest.fixture
def path(tmp_path: Path, case: Case) -> Path:
    path = tmp_path / "2s.yaml"
    write_policy(policy_for(case), path)
    return path


def rewritten(path: Path, case: Case, **device: Any) -> Policy:
    """Write the policy for a case whose device differs, and load it."""
    other = case.model_copy(update={"device": case.device.model_copy(update=device)})
    write_policy(policy_for(other), path)
    return load(path)


def plain(pipe: Any, **call: Any) -> Any:
    import torch

    noise = torch.Generator("cpu").manual_seed(0)
    return pipe("a red circle", generator=noise, output_type="np", **call).images[0]


def test_after_apply_a_plain_call_is_the_plans_call(path: Path, pipe: Any) -> None:
    by_hand = render(pipe, num_inference_steps=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle = planner.load(path).apply(pipe)
    with handle:
        assert handle.certified and handle.plan == PLAN
        assert np.array_equal(plain(pipe), by_hand)
    before, after = render(pipe), render(pipe)
    assert np.array_equal(before, after) and not np.array_equal(before, by_hand)


def test_a_fine_tune_is_refused_and_left_untouched(path: Path, case: Case) -> None:
    tuned = tiny_flux(seed=1)
    kind = type(tuned)
    with pytest.raises(PolicyDoesNotFit) as caught:
        load(path).apply(tuned)
    error = caught.value
    assert error.exit_code == 5 and type(tuned) is kind
    assert "transformer has weights" in error.what and "vae has weights" in error.what
    assert str(path) in error.what and error.way_out


def test_another_structure_is_refused_by_its_config(path: Path) -> None:
    with pytest.raises(PolicyDoesNotFit, match="transformer has config"):
        load(path).apply(tiny_flux(single_layers=1))


def test_outside_the_envelope_it_warns_once_with_every_difference(
    path: Path, case: Case, pipe: Any
) -> None:
    policy = rewritten(path, case, name="Another CPU", driver="580.1")
    with pytest.warns(PolicyWarning) as caught, policy.apply(pipe) as handle:
        assert not handle.certified
    (warning,) = caught
    text = str(warning.message)
    assert "measured on Another CPU; here" in text and "driver 580.1; here none" in text
    assert warning.filename == __file__


def test_strict_refuses_what_lies_outside_the_envelope(path: Path, case: Case, pipe: Any) -> None:
    policy = rewritten(path, case, name="Another CPU")
    with pytest.raises(PolicyDoesNotFit, match="measured on Another CPU"):
        policy.apply(pipe, strict=True)


def test_a_pipeline_in_another_precision_is_outside_the_envelope(
    path: Path, case: Case, pipe: Any
) -> None:
    workload = case.workload.model_copy(update={"dtype": "float16"})
    write_policy(policy_for(case.model_copy(update={"workload": workload})), path)
    with pytest.warns(PolicyWarning, match="dtype 'float16'; here 'float32'"):
        load(path).apply(pipe).remove()


def test_where_warnings_are_errors_nothing_is_put_on(path: Path, case: Case, pipe: Any) -> None:
    policy, kind = rewritten(path, case, name="Another CPU"), type(pipe)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PolicyWarning):
            policy.apply(pipe)
    assert type(pipe) is kind


def test_a_measured_policy_is_applied_without_being_certified(
    path: Path, case: Case, pipe: Any
) -> None:
    evidence = some_evidence(certified=False)
    write_policy(policy_for(case, status="measured", evidence=evidence), path)
    with load(path).apply(pipe) as handle:
        assert not handle.certified


def test_a_predicted_policy_must_be_asked_for(path: Path, case: Case, pipe: Any) -> None:
    write_policy(predicted_for(case), path)
    assert check(path).status == "predicted"
    with pytest.raises(UsageError, match="is a predicted policy") as caught:
        load(path)
    assert caught.value.value == "predicted" and "allow=" in caught.value.way_out
    assert "--predicted" in caught.value.way_out
    with pytest.warns(PolicyWarning, match="nothing of it was measured") as said:
        handle = load(path, allow=("predicted",)).apply(pipe)
    with handle:
        assert not handle.certified
    assert "`planner tune` measures" in str(said[0].message)
    with pytest.raises(PolicyDoesNotFit, match="nothing of it was measured"):
        load(path, allow=("predicted",)).apply(pipe, strict=True)


@pytest.mark.filterwarnings("ignore::planner.policy.runtime.PolicyWarning")
@pytest.mark.parametrize(("threshold", "inert"), [(1e-6, True), (10.0, False)])
def test_a_cache_of_a_prediction_that_reuses_nothing_is_said(
    path: Path, case: Case, pipe: Any, threshold: float, inert: bool
) -> None:
    plan = Plan.of({"first_block_cache": {"threshold": threshold}})
    write_policy(predicted_for(case, plan=plan), path)
    with load(path, allow=("predicted",)).apply(pipe), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pipe("a red circle", output_type="latent", generator=torch.Generator().manual_seed(0))
    said = [str(one.message) for one in seen if one.category is UnexpectedReuseWarning]
    assert len(said) == inert
    if inert:
        assert "first_block_cache reused 0.0% of its forwards; the policy expects 5.0%" in said[0]


def test_a_prediction_asks_for_classes_and_not_for_weights_or_parts_it_never_saw(
    path: Path, case: Case, pipe: Any
) -> None:
    bare = {
        name: Component(class_name=part.class_name, config=part.config)
        for name, part in case.model.components.items() if part.weights
    }  # fmt: skip
    unseen = case.model_copy(update={"model": case.model.model_copy(update={"components": bare})})
    write_policy(predicted_for(unseen), path)
    with pytest.warns(PolicyWarning), load(path, allow=("predicted",)).apply(pipe):
        pass
    other = bare | {"transformer": Component(class_name="Other", config="0" * 64)}
    model = unseen.model.model_copy(update={"components": other})
    write_policy(predicted_for(unseen.model_copy(update={"model": model})), path)
    with pytest.raises(PolicyDoesNotFit, match="transformer is a Other in the policy"):
        load(path, allow=("predicted",)).apply(pipe)
    renamed = bare | {"vae": bare["vae"].model_copy(update={"config": "0" * 64})}
    model = unseen.model.model_copy(update={"components": renamed})
    write_policy(predicted_for(unseen.model_copy(update={"model": model})), path)
    with (
        pytest.warns(PolicyWarning, match="vae has config 0000"),
        load(path, allow=("predicted",)).apply(pipe),
    ):
        pass


def test_a_predicted_pass_that_must_learn_is_refused(path: Path, case: Case, pipe: Any) -> None:
    write_policy(predicted_for(case, plan=Plan.of({"tea_cache": {}})), path)
    with pytest.raises(PolicyDoesNotFit, match="tea_cache needs what only `planner tune` finds"):
        load(path, allow=("predicted",)).apply(pipe)


def test_a_policy_is_a_label_and_never_a_command(path: Path, case: Case) -> None:
    policy = load(path)
    with pytest.raises(UsageError, match="does not load on a policy's word") as caught:
        policy.source()
    assert caught.value.value == "tests.tiny:tiny_flux" and "--model" in caught.value.way_out
    source = policy.source("tests.tiny:tiny_flux", path=".")
    assert source.model == "tests.tiny:tiny_flux" and source.path == "."
    assert source.device == "cpu" and source.dtype == "float32"


def test_a_catalogued_model_is_loaded_by_its_label(path: Path) -> None:
    write_policy(a_policy(), path)
    assert load(path).source(device="cuda").model == "shapes"


def lean(script: str, *arguments: Path) -> None:
    """Run a script and fail with its words if it does."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)],
        capture_output=True, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_checking_a_policy_needs_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "2s.yaml"
    write_policy(a_policy(), path)
    lean(
        "import sys, planner\n"
        "print(planner.check(sys.argv[1]))\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'optuna', 'networkx', 'scipy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "others = {m for m in sys.modules if m.startswith('planner.passes.')} - {\n"
        "    'planner.passes.base', 'planner.passes.needs', 'planner.passes.registry',\n"
        "    'planner.passes.sampling', 'planner.passes.sampling.steps',\n"
        "    'planner.passes.caching', 'planner.passes.caching.tea_cache'}\n"
        "assert not others, others\n",
        path,
    )


def test_applying_a_policy_imports_nothing_of_the_search(path: Path) -> None:
    lean(
        "import sys, planner\n"
        "from tests.tiny import tiny_flux\n"
        "pipe = tiny_flux()\n"
        "before = set(sys.modules)\n"
        "planner.load(sys.argv[1]).apply(pipe).remove()\n"
        "assert not {'optuna', 'networkx', 'lpips', 'click'} & (set(sys.modules) - before)\n"
        "above = ('planner.tuning', 'planner.trials', 'planner.plans.graph', 'planner.measure')\n"
        "assert not [m for m in sys.modules if m.startswith(above)]\n"
        "assert 'optuna' not in sys.modules\n",
        path,
    )
