"""An image decoded in tiles."""

from typing import Any

import pytest
import torch

from planner.passes import registry
from planner.plans.graph import build
from planner.plans.plan import Plan
from tests.passes.driving import Bench, large_bench
from tests.passes.gpus import on_gpu

PASS = registry.get("vae_tiling")


def settings(**values: Any) -> Any:
    """Return settings with these values."""
    return registry.settings_of("vae_tiling", values)


@pytest.mark.parametrize(("tile", "tiles"), [(256, 4), (128, 9)])
def test_the_effect_counts_the_tiles_and_the_work_that_are_really_decoded(
    tile: int, tiles: int
) -> None:
    bench = large_bench()
    after = PASS.effect(bench.work, settings(tile=tile), None).phases[-1]
    with bench.put({"vae_tiling": {"tile": tile}}) as handle:
        bench.draw()
        assert handle.stats["vae_tiling"] == {"decodes": tiles}
        real = bench.traced().phases[-1]
    assert after.flops == pytest.approx(real.flops, rel=0.02)
    assert after.flops > bench.work.phases[-1].flops


def test_the_peak_falls_with_the_tiles_share_of_the_area() -> None:
    work = large_bench().work
    decode = work.phases[-1].model_copy(update={"peak": 1000.0})
    whole = work.model_copy(update={"phases": (*work.phases[:-1], decode)})
    after = PASS.effect(whole, settings(tile=128), None)
    assert after.phases[-1].peak == pytest.approx(1000 * 128 * 128 / (288 * 272))
    assert after.phases[:-1] == whole.phases[:-1]


def test_work_of_unknown_size_is_left_as_it_is() -> None:
    work = large_bench().work.model_copy(update={"height": 0, "width": 0})
    assert PASS.effect(work, settings(), None) == work


def test_an_image_that_is_no_larger_than_a_tile_is_refused_with_both_sizes(bench: Bench) -> None:
    (said,) = PASS.missing(bench.case)
    assert said == "vae_tiling needs an image larger than 256 px; this call draws 64×64"
    graph = build(on_gpu(height=512, width=512))
    why = graph.why_not(Plan.of({"vae_tiling": {"tile": 512}}))
    assert why is not None and "cuts nothing of 512×512 px with tiles of 512 px" in why
    assert graph.why_not(Plan.of({"vae_tiling": {"tile": 256}})) is None


def test_a_search_tries_only_tiles_that_cut() -> None:
    assert PASS.narrow is not None
    assert PASS.narrow(on_gpu(height=1024, width=768), None)["tile"].choices == (256, 512)


def test_a_vae_of_another_kind_is_refused_by_its_class() -> None:
    case = on_gpu(height=1024, width=1024)
    strange = case.model.components["vae"].model_copy(update={"class_name": "VQModel"})
    parts = case.model.components | {"vae": strange}
    other = case.model_copy(update={"model": case.model.model_copy(update={"components": parts})})
    assert PASS.missing(other) == (
        "vae_tiling needs a VAE that decodes in square tiles; FluxPipeline has VQModel",
    )


@pytest.mark.parametrize("kind", ["AutoencoderKLQwenImage", "AutoencoderKLHunyuanImage"])
def test_tiles_of_other_vaes_are_set_by_their_own_attributes(kind: str) -> None:
    import diffusers

    made = {
        "AutoencoderKLQwenImage": {"base_dim": 8, "z_dim": 4, "num_res_blocks": 1},
        "AutoencoderKLHunyuanImage": {
            "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 1,
            "block_out_channels": (32, 32), "spatial_compression_ratio": 2, "sample_size": 64,
        },
    }  # fmt: skip
    with torch.device("meta"):
        vae = getattr(diffusers, kind)(**made[kind])
    found = registry.get("vae_tiling").apply.__globals__["geometry"](vae, settings(tile=256))
    assert found and set(found) <= set(vars(vae))
    assert all(value == 256 for name, value in found.items() if "sample_min" in name)
    assert all(value == 192 for name, value in found.items() if "stride" in name)
