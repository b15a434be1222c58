"""Processors: what they say of themselves, and what they refuse to invent."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from planner.errors import UsageError
from planner.run.devices.base import backend
from planner.run.devices.cpu import use_threads_of
from planner.run.devices.cuda import available
from planner.run.devices.fake import FakeBackend


def test_a_cpu_names_itself_and_its_libraries() -> None:
    device = backend("cpu").describe()
    assert device.kind == device.slug == "cpu" and device.name and device.threads >= 1
    assert device.libraries.keys() == {"planner", "torch", "diffusers", "transformers"} | (
        {"onnxruntime"} if find_spec("onnxruntime") else set()
    )
    assert device == backend("cpu").describe() and device.memory_bytes > 2**28


def test_the_best_device_is_taken_where_none_is_named() -> None:
    assert backend().torch_device == ("cuda:0" if available() else "cpu")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux resets its peak")
def test_peak_memory_rises_with_an_allocation_and_falls_with_the_next_measurement() -> None:
    cpu = backend("cpu")
    cpu.reset_peak()
    bytearray(b"x") * 2**27
    large = cpu.peak_bytes()
    cpu.reset_peak()
    assert large >= cpu.peak_bytes() + 2**26 > 2**26


def test_commands_take_a_policys_threads_unless_the_environment_names_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch.get_num_threads()
    measured = backend("cpu").describe().model_copy(update={"threads": 1})
    try:
        torch.set_num_threads(2)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        use_threads_of(measured)
        assert torch.get_num_threads() == 2
        monkeypatch.delenv("OMP_NUM_THREADS")
        use_threads_of(measured.model_copy(update={"kind": "cuda"}))
        assert torch.get_num_threads() == 2
        use_threads_of(measured)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["cpuu", "tpu", "cpu:1", "cuda:x"])
def test_an_unknown_device_is_refused_with_the_known_ones(kind: str) -> None:
    with pytest.raises(UsageError, match="no device is called") as caught:
        backend(kind)
    assert caught.value.value == kind and caught.value.way_out.startswith(("did you", "known"))


def test_a_cuda_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="'cuda:99' is not there") as caught:
        backend("cuda:99")
    assert caught.value.value == "cuda:99" and "--device cpu" in caught.value.way_out


def test_a_fake_device_has_a_capability_and_measures_nothing() -> None:
    fake = FakeBackend(name="planned gpu", capability=(9, 0))
    assert fake.describe().capability == (9, 0) and fake.torch_device == "meta"
    assert backend("fake").describe().kind == "fake"
    for measure in (fake.peak_bytes, fake.reset_peak):
        with pytest.raises(UsageError, match="'planned gpu' is declared") as caught:
            measure()
        assert caught.value.value == "planned gpu" and "cpu or cuda" in caught.value.way_out


@pytest.mark.skipif(not available(), reason="needs a CUDA device")
def test_a_cuda_device_says_what_it_holds() -> None:
    import torch

    gpu = backend("cuda")
    gpu.reset_peak()
    torch.ones(2**26, device=gpu.torch_device)
    device = gpu.describe()
    assert gpu.peak_bytes() >= 2**28 and device.capability and device.driver
    assert device.kind == "cuda" and "cuda" in device.libraries
