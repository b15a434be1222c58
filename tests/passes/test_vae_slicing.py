"""A batch decoded image by image."""

import pytest

from planner.passes import registry
from tests.passes.driving import Bench, large_bench

PASS = registry.get("vae_slicing")


def test_as_many_decodes_as_images_and_no_more_work() -> None:
    bench = large_bench()
    after = PASS.effect(bench.work, PASS.settings(), None).phases[-1]
    with bench.put({"vae_slicing": {}}) as handle:
        bench.draw()
        assert handle.stats["vae_slicing"] == {"decodes": 2}
        real = bench.traced().phases[-1]
    assert after.calls == real.calls == 2
    assert after.flops == pytest.approx(real.flops)
    assert after.flops == pytest.approx(bench.work.phases[-1].flops)


def test_tiles_and_slices_go_together() -> None:
    bench = large_bench()
    with bench.put({"vae_slicing": {}, "vae_tiling": {"tile": 256}}) as handle:
        bench.draw()
        assert handle.stats["vae_slicing"] == handle.stats["vae_tiling"] == {"decodes": 8}


def test_the_peak_is_that_of_one_image() -> None:
    work = large_bench().work
    decode = work.phases[-1].model_copy(update={"peak": 1000.0})
    whole = work.model_copy(update={"phases": (*work.phases[:-1], decode)})
    assert PASS.effect(whole, PASS.settings(), None).phases[-1].peak == 500.0


def test_one_image_a_call_is_nothing_to_slice(bench: Bench) -> None:
    assert PASS.missing(bench.case) == (
        "vae_slicing needs two images a call or more; this call draws 1",
    )
    assert PASS.effect(bench.work, PASS.settings(), None) == bench.work
    call = bench.case.workload.call | {"num_images_per_prompt": 4}
    several = bench.case.workload.model_copy(update={"call": call})
    assert PASS.missing(bench.case.model_copy(update={"workload": several})) == ()


def test_a_batch_that_was_decoded_at_once_is_inert() -> None:
    workload = large_bench().case.workload
    assert PASS.observe is not None
    assert PASS.observe(PASS.settings(), {"decodes": 2}, workload) is None
    assert PASS.observe(PASS.settings(), {"decodes": 1}, workload) == (
        "vae_slicing decoded 2 images at once"
    )
