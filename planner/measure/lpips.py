"""LPIPS without a download: AlexNet features from the package, their hash checked at every load.

Source: Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric,
CVPR 2018 (arXiv 1801.03924), version 0.1 of the authors' package.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from planner.errors import InvalidFile, UsageError
from planner.measure.images import Pixels

if TYPE_CHECKING:
    from torch import Tensor, nn

BACKBONE = Path(__file__).parent / "data" / "alexnet_features.safetensors"
SHA256 = "9f97fd313f4da83dbe6bbfbe6effca1241de9edfcd7c53386261ed9697286dd9"
IMPLEMENTATION = (
    f"lpips {metadata.version('lpips')}, alex, version 0.1, backbone sha256 {SHA256[:12]}, "
    "full resolution, [-1, 1]"
)
"""What stands beside every number that comes from here."""

_LEAST = 31  # pixels a side below which AlexNet's pooling has nothing left
_CHUNK = 16


class Lpips:
    """The distance between images as people see it: 0 for the same, about 0.7 for unlike ones.

    Pixels are uint8, height × width × 3, at least 31 a side, and the two of a pair alike in size.
    """

    def __init__(self, backbone: Path = BACKBONE, device: str = "cpu") -> None:
        """Load the network. Raises `InvalidFile` where the backbone is not the published one."""
        self._features = _backbone(backbone)
        self._device = device

    def distance(self, a: Pixels, b: Pixels) -> float:
        """Return the distance of two images. Raises `UsageError` where their sizes differ."""
        return self.distances([a], [b])[0]

    def distances(self, a: Sequence[Pixels], b: Sequence[Pixels]) -> list[float]:
        """Return the distances of pairs of images; all images have one size."""
        import torch

        if len(a) != len(b):
            what = f"{len(a)} and {len(b)} images make no pairs"
            raise UsageError(what, value=len(b), way_out="give as many of one as of the other")
        found: list[float] = []
        for start in range(0, len(a), _CHUNK):
            one, other = self._pair(a[start : start + _CHUNK], b[start : start + _CHUNK])
            with torch.no_grad():
                found += self._mean(one, other).flatten().tolist()
        return found

    def maps(self, a: Pixels, b: Pixels) -> NDArray[np.float32]:
        """Return the distance at every place of two images, height × width.

        Layers are upsampled bilinearly, so that the mean of a map is near the distance, not it.
        """
        import torch

        with torch.no_grad():
            found = self._spatial(*self._pair([a], [b]))
        array: NDArray[np.float32] = found[0, 0].cpu().numpy()
        return array

    @cached_property
    def _mean(self) -> nn.Module:
        return _network(self._features, spatial=False).to(self._device)

    @cached_property
    def _spatial(self) -> nn.Module:
        return _network(self._features, spatial=True).to(self._device)

    def _pair(self, a: Sequence[Pixels], b: Sequence[Pixels]) -> tuple[Tensor, Tensor]:
        sizes = {image.shape for image in (*a, *b)}
        if len(sizes) > 1:
            shown = " and ".join(f"{s[1]}×{s[0]}" for s in sorted(sizes))
            what = f"images of {shown} pixels cannot be compared"
            raise UsageError(what, value=sorted(sizes), way_out="give images of one size")
        return self._tensor(a), self._tensor(b)

    def _tensor(self, images: Sequence[Pixels]) -> Tensor:
        """Return images as (count, 3, height, width) in [-1, 1]."""
        import torch

        stack = np.stack(images)
        right = stack.dtype == np.uint8 and stack.ndim == 4 and stack.shape[3] == 3
        if not right or min(stack.shape[1:3]) < _LEAST:
            what = f"an image is {stack.dtype} of shape {stack.shape[1:]}"
            way_out = f"give uint8, height × width × 3, at least {_LEAST} pixels a side"
            raise UsageError(what, value=stack.shape[1:], way_out=way_out)
        pixels = torch.from_numpy(stack).to(self._device).permute(0, 3, 1, 2).float()
        return pixels / 127.5 - 1


def _backbone(file: Path) -> dict[str, Tensor]:
    """Read the convolution layers, named as lpips names them (features.3 is slice2.3)."""
    from safetensors.torch import load

    content = file.read_bytes() if file.is_file() else b""
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        what = f"{file} is not the published LPIPS backbone (sha256 {found[:12]}…)"
        raise InvalidFile(what, value=found, way_out="install planner again to restore it")
    slices = {"0": 1, "3": 2, "6": 3, "8": 4, "10": 5}
    layers = {}
    for name, value in load(content).items():
        _, layer, kind = name.split(".")
        layers[f"net.slice{slices[layer]}.{layer}.{kind}"] = value
    return layers


def _network(features: dict[str, Tensor], spatial: bool) -> nn.Module:
    """Build lpips's network on the meta device and give it backbone and heads.

    Built in memory it would first draw 60 million random weights and move the global seed.
    """
    import lpips
    import torch

    with warnings.catch_warnings(), torch.device("meta"):
        # lpips 0.1.4 still calls torchvision's alexnet(pretrained=…), deprecated since 0.13.
        warnings.filterwarnings("ignore", r"(The parameter 'pretrained'|Arguments other than a)")
        network: Any = lpips.LPIPS(
            net="alex", pnet_rand=True, pretrained=False, spatial=spatial, verbose=False
        )
    file = Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"
    heads = torch.load(file, map_location="cpu", weights_only=True)
    doubles = {f"lins.{name[3]}{name[4:]}": value for name, value in heads.items()}
    fixed = {name: value for name, value in network.state_dict().items() if "scaling" in name}
    network.load_state_dict(fixed | features | heads | doubles, strict=True, assign=True)
    module: nn.Module = network.eval().requires_grad_(False)
    return module
