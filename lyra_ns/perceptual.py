"""Perceptual distance: LPIPS v0.1 of the `lpips` package, with trunk weights that also work offline.

Shape letters: N images, H W image.
"""

from __future__ import annotations

import logging
import warnings
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lyra_ns.lpips_trunks import fetch_lpips_trunk, find_lpips_trunk

__all__ = ["PerceptualDistance", "fetch_lpips_trunk", "load_lpips"]

LPIPS_EPSILON = 1e-10
"""Added to a feature's length before dividing by it, as in the `lpips` package."""
PIXELS_AT_ONCE = 2**25
"""Pixels that go through the trunk at once unless told otherwise: 37 images of 704 x 1280."""
SMALLEST_SIDE = 32
"""Images smaller than this vanish inside the trunks."""

logger = logging.getLogger(__name__)


class PerceptualDistance:
    """LPIPS with frozen weights: `distance(predicted, target)` of images in [0, 1].

    A plain object, not a module, so that no model takes the trunk into its state dict. It follows the
    images from device to device.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        compute_dtype: torch.dtype | None = None,
        images_at_once: int | None = None,
    ) -> None:
        """Wrap an `lpips.LPIPS` network; `compute_dtype` (bfloat16) puts its trunk under autocast.

        More than `images_at_once` images (None: than PIXELS_AT_ONCE pixels) go in parts.
        """
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.name = name
        self.compute_dtype = compute_dtype
        self.images_at_once = images_at_once

    def computing_in(self, dtype: torch.dtype | None) -> PerceptualDistance:
        """The same network with its trunk in another precision."""
        return PerceptualDistance(self.network, self.name, dtype, self.images_at_once)

    def to(self, device: torch.device | str) -> PerceptualDistance:
        """The same object with its weights on `device`."""
        self.network.to(device)
        return self

    def __call__(
        self, predicted: Float[Tensor, "N 3 H W"], target: Float[Tensor, "N 3 H W"]
    ) -> Float[Tensor, " N"]:
        """Distance of each pair of images, 0 for equal ones; differentiable in `predicted` only."""
        return self.forward(predicted, target)

    def forward(
        self, predicted: Float[Tensor, "N 3 H W"], target: Float[Tensor, "N 3 H W"]
    ) -> Float[Tensor, " N"]:
        """As calling the object. What does not fit at once goes in parts, each recomputed backward."""
        if min(predicted.shape[-2:]) < SMALLEST_SIDE:
            raise ValueError(
                f"LPIPS needs images of at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels, "
                f"found {predicted.shape[-2]} x {predicted.shape[-1]}: set the lpips weight to 0"
            )
        if next(self.network.parameters()).device != predicted.device:
            self.to(predicted.device)
        height, width = predicted.shape[-2:]
        at_once = self.images_at_once or max(1, PIXELS_AT_ONCE // (height * width))
        if len(predicted) <= at_once:
            return self._distance(predicted, target)
        parts = zip(predicted.split(at_once), target.split(at_once), strict=True)
        # No random numbers inside: saving their state would only wait for the device.
        recomputed = partial(checkpoint, self._distance, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([recomputed(*part) for part in parts])

    def _distance(self, predicted: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = [_unit_length(feature) for feature in self._features(target)]
        total = predicted.new_zeros(len(predicted), dtype=torch.float32)
        heads = self.network.get_submodule("lins").children()
        layers = zip(self._features(predicted), wanted, heads, strict=True)
        for feature, wanted_feature, head in layers:
            difference = (_unit_length(feature) - wanted_feature).square()
            # A head is a 1 x 1 convolution to one channel: averaging first gives the same and costs less.
            total = total + (difference.mean((2, 3)) * next(head.parameters()).flatten()).sum(-1)
        return total

    def _features(self, images: Tensor) -> list[Tensor]:
        scaling, trunk = (self.network.get_submodule(name) for name in ("scaling_layer", "net"))
        scaled = scaling(images.float() * 2 - 1).contiguous(memory_format=torch.channels_last)
        dtype = self.compute_dtype
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
            return [feature.float() for feature in trunk(scaled)]


def _unit_length(feature: Tensor) -> Tensor:
    return feature / (torch.linalg.vector_norm(feature, dim=1, keepdim=True) + LPIPS_EPSILON)


def load_lpips(
    net: Literal["vgg", "alex"] = "vgg",
    compute_dtype: torch.dtype | None = None,
    images_at_once: int | None = None,
) -> PerceptualDistance:
    """LPIPS v0.1 with the trunk `net`; its `name` (also logged) says which weights it runs on.

    The trunk is the shipped one (alex), torchvision's if it is in the torch hub cache, a converted one in the
    cache of this package, or fetched once. FileNotFoundError, with what to do, if there is none.
    """
    trunk = find_lpips_trunk(net)
    network = _network_with_trunk(net, trunk.weights)
    title = {"vgg": "VGG16", "alex": "AlexNet"}[net]
    perceptual = PerceptualDistance(
        network, f"LPIPS v0.1, {title} trunk, {trunk.source}", compute_dtype, images_at_once
    )
    logger.info("Perceptual distance: %s", perceptual.name)
    return perceptual


def _network_with_trunk(net: str, trunk: dict[str, Tensor]) -> nn.Module:
    """The package's network (its linear heads come with it) with every weight of the trunk copied in."""
    import lpips  # only here: nerfstudio loads our configurations, which know LossConfig, for every command

    with warnings.catch_warnings():
        # lpips calls torchvision with its old argument names.
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        # With use_dropout off it would leave its heads random, without a word; evaluation mode drops nothing.
        network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    state = {_torchvision_key(key): tensor for key, tensor in network.net.state_dict().items()}
    if state.keys() != trunk.keys():
        raise ValueError(f"LPIPS trunk {net}: expected the weights {sorted(state)}, found {sorted(trunk)}")
    for key, tensor in state.items():
        tensor.copy_(trunk[key])
    return network


def _torchvision_key(key: str) -> str:
    """`slice3.10.weight` of lpips as torchvision names it: `features.10.weight`."""
    return "features." + key.split(".", 1)[1]
