"""The kernel that attention layers call."""

from typing import Any

import pytest
import torch

from planner.errors import TrialFailed
from planner.passes import registry
from planner.plans.graph import build
from planner.plans.plan import Plan
from tests.passes.driving import Bench, declared_bench
from tests.passes.gpus import gpu, heavy_work, on_gpu

PASS = registry.get("attention_backend")


def choices(case: Any) -> tuple[Any, ...]:
    """Return the kernels that a search would try."""
    assert PASS.narrow is not None
    return PASS.narrow(case, None)["backend"].choices or ()


def why_not(case: Any, backend: str, **others: Any) -> str:
    """Return why a plan with this kernel is refused."""
    return str(build(case).why_not(Plan.of({"attention_backend": {"backend": backend}} | others)))


def test_the_kernel_is_called_and_the_process_keeps_its_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.nn import attention

    called = []
    real = attention.sdpa_kernel
    monkeypatch.setattr(attention, "sdpa_kernel", lambda kind: called.append(kind) or real(kind))
    untouched = bench.draw()
    with declared_bench().put({"attention_backend": {"backend": "sdpa_math"}}) as handle:
        assert torch.allclose(bench.draw(), untouched, atol=1e-5)
        assert handle.stats["attention_backend"] == {"layers": 4, "backend": "sdpa_math"}
    assert set(called) == {attention.SDPBackend.MATH} and len(called) == 80
    assert torch.equal(bench.draw(), untouched) and len(called) == 80


def test_a_kernel_whose_package_is_missing_leaves_no_trace(bench: Bench) -> None:
    with pytest.raises(TrialFailed, match="flash-attn"):
        declared_bench().put({"attention_backend": {"backend": "flash2"}})


@pytest.mark.parametrize(("capability", "libraries", "found"), [
    ((7, 5), {}, {"sdpa_efficient"}),
    ((8, 0), {}, {"sdpa_efficient", "sdpa_cudnn", "sdpa_flash"}),
    ((8, 9), {"sageattention": "2.2.0"}, {"sdpa_efficient", "sdpa_cudnn", "sdpa_flash", "sage"}),
    ((9, 0), {"flash_attn": "2.8.3", "kernels": "0.12.1"},
     {"sdpa_efficient", "sdpa_cudnn", "sdpa_flash", "flash2", "flash2_hub", "flash3_hub",
      "sage_hub"}),
    ((10, 0), {"kernels": "0.9"}, {"sdpa_efficient", "sdpa_cudnn", "sdpa_flash"}),
])  # fmt: skip
def test_a_search_tries_only_what_the_device_and_its_packages_have(
    capability: tuple[int, int], libraries: dict[str, str], found: set[str]
) -> None:
    case = on_gpu(gpu(capability, **libraries))
    assert PASS.missing(case) == () and set(choices(case)) == found


def test_every_kernel_is_refused_with_what_it_lacks() -> None:
    assert "flash3 needs compute capability 9.0 to 9.x; this device has 8.6" in why_not(
        on_gpu(gpu((8, 6))), "flash3"
    )
    assert "sage needs sageattention>=2.1.1; here is 1.0.6" in why_not(
        on_gpu(gpu((8, 6), sageattention="1.0.6")), "sage"
    )
    assert "sdpa_cudnn needs float16 or bfloat16; this workload's dtype is float32" in why_not(
        on_gpu(gpu((9, 0)), dtype="float32"), "sdpa_cudnn"
    )
    assert why_not(on_gpu(gpu((9, 0))), "sdpa_cudnn") == "None"


def test_a_cpu_has_nothing_to_choose_from(bench: Bench) -> None:
    assert PASS.missing(bench.case) == (
        "attention_backend needs another kernel than torch's own choice: "
        "a CUDA device; this one is a cpu",
    )


def test_sage_is_kept_out_of_captured_graphs_and_advised_against_under_compilation() -> None:
    case = on_gpu(gpu((8, 9), sageattention="2.2.0"))
    assert "compiles without graphs only" in why_not(case, "sage", cuda_graphs={})
    assert why_not(case, "sdpa_cudnn", cuda_graphs={}) == "None"
    plan = Plan.of({"attention_backend": {"backend": "sage"}, "compile_blocks": {}})
    assert any("noise" in said for said in build(case).advice(plan))


def test_only_the_denoisers_attention_is_named() -> None:
    settings = registry.settings_of("attention_backend", {"backend": "sage_hub"})
    after = PASS.effect(heavy_work(), settings, None)
    named = [op.kernel for phase in after.phases for op in phase.operations if op.kernel]
    assert named == ["sage", "sage"] and after.phases[-1].operations[0].kernel == ""
