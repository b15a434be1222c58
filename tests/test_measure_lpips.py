"""LPIPS without a download.

The distances pinned here were also computed by a second program, straight from the backbone and
the heads without the lpips package: 0.0273744, 0.5149901 and 0.5212025.
"""

import hashlib
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.errors import InvalidFile, UsageError
from planner.measure.images import load_png
from planner.measure.lpips import BACKBONE, IMPLEMENTATION, SHA256, Lpips

IMAGES = Path(__file__).parent / "images"
SCENE, NEAR, FAR = (load_png(IMAGES / f"{name}.png") for name in ("scene", "near", "far"))


@pytest.fixture(scope="module")
def lpips() -> Lpips:
    """The metric, built and used with every socket closed."""
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise AssertionError("LPIPS reached for the network")

        patch.setattr(socket, "socket", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        metric = Lpips()
        metric.distance(SCENE, SCENE)
    return metric


def test_known_distances_come_out(lpips: Lpips) -> None:
    assert lpips.distance(SCENE, NEAR) == pytest.approx(0.0273744, abs=2e-5)
    assert lpips.distance(SCENE, FAR) == pytest.approx(0.5149901, abs=2e-5)
    assert lpips.distance(NEAR, FAR) == pytest.approx(0.5212025, abs=2e-5)


def test_an_image_is_at_no_distance_from_itself_and_pairs_have_no_order(lpips: Lpips) -> None:
    assert lpips.distance(SCENE, SCENE) == 0.0
    assert lpips.distance(FAR, SCENE) == pytest.approx(lpips.distance(SCENE, FAR), abs=1e-6)


def test_many_pairs_are_measured_as_each_alone(lpips: Lpips) -> None:
    pairs = [(SCENE, NEAR), (SCENE, FAR), (NEAR, FAR)] * 6
    alone = [lpips.distance(a, b) for a, b in pairs[:3]] * 6
    together = lpips.distances([a for a, _ in pairs], [b for _, b in pairs])
    assert together == pytest.approx(alone, abs=1e-5) and lpips.distances([], []) == []


def test_a_map_shows_where_images_differ(lpips: Lpips) -> None:
    changed = SCENE.copy()
    changed[40:60, 40:60] = FAR[40:60, 40:60]
    where = lpips.maps(SCENE, changed)
    assert where.shape == (64, 64) and where[45:55, 45:55].mean() > 5 * where[:20, :20].mean()
    assert where.mean() == pytest.approx(lpips.distance(SCENE, changed), rel=0.2)


def test_images_of_other_sizes_are_refused(lpips: Lpips) -> None:
    with pytest.raises(UsageError, match="images of 48×64 and 64×64 pixels") as caught:
        lpips.distance(SCENE, NEAR[:, :48])
    assert caught.value.value and "one size" in caught.value.way_out
    with pytest.raises(UsageError, match="2 and 1 images make no pairs"):
        lpips.distances([SCENE, NEAR], [FAR])


@pytest.mark.parametrize(
    "image", [SCENE[:30, :30], SCENE.astype(np.float32), SCENE[:, :, :1], SCENE[:, :, 0]]
)
def test_what_is_no_image_for_it_is_refused(lpips: Lpips, image: Any) -> None:
    with pytest.raises(UsageError, match="an image is") as caught:
        lpips.distance(image, image)
    assert "uint8, height × width × 3" in caught.value.way_out


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    changed = bytearray(BACKBONE.read_bytes())
    changed[-1] ^= 1
    for file, content in ((tmp_path / "a.safetensors", changed), (tmp_path / "none", None)):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(InvalidFile, match="not the published LPIPS backbone") as caught:
            Lpips(file)
        assert caught.value.value != SHA256 and "install" in caught.value.way_out


def test_the_backbone_and_its_origin_are_named_beside_every_number() -> None:
    assert hashlib.sha256(BACKBONE.read_bytes()).hexdigest() == SHA256
    assert SHA256[:12] in IMPLEMENTATION and "alex" in IMPLEMENTATION
    readme = (BACKBONE.parent / "README.md").read_text()
    assert SHA256 in readme and (BACKBONE.parent / "LICENSE.torchvision").is_file()


def test_building_the_metric_leaves_the_global_seed_alone() -> None:
    import torch

    before = torch.random.get_rng_state()
    Lpips().distance(SCENE, NEAR)
    assert torch.equal(before, torch.random.get_rng_state())
