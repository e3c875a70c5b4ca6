"""LPIPS with VGG's frozen trunk, its gradient written out: convolutions of cuDNN, one kernel between two.

Autograd spends as long between the convolutions as in them: on biases, masks, indices of pooling and sums of
gradients. Here the maps behind the ReLUs are all that is kept. Shape letters: N images, H W image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lyra_ns.kernels.feature_distance import feature_distance
from lyra_ns.kernels.feature_trunk_kernels import (
    distance_and_gradient,
    mask_gradient,
    rectify,
    rectify_and_pool,
)


@dataclass(frozen=True)
class Convolution:
    """One 3 x 3 convolution that keeps the size of its map."""

    weight: Tensor
    """In the dtype of the maps, channels-last."""
    bias: Tensor
    """In float32: it is added before anything is rounded."""


class FeatureTrunk:
    """Distances and gradients of images by one `lpips.LPIPS` network on VGG, whose maps are in `dtype`.

    A snapshot: weights that change later are not seen. On a CUDA device, and in Triton's interpreter.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype, eps: float) -> None:
        """Copy what is needed of `network`; `eps` is added to a feature's length before dividing by it."""
        slices = network.get_submodule("net").children()
        self._blocks = [list(_convolutions(layers, dtype)) for layers in slices]
        heads = network.get_submodule("lins").children()
        # A head is a 1 x 1 convolution to one channel.
        self._heads = [next(head.parameters()).detach().flatten().float() for head in heads]
        shift, scale = (network.get_buffer(f"scaling_layer.{name}") for name in ("shift", "scale"))
        # The network wants (2 image - 1 - shift) / scale.
        self._gain, self._offset = 2 / scale, -(1 + shift) / scale
        self._dtype, self._eps = dtype, eps

    @torch.no_grad()
    def distance(
        self, predicted: Float[Tensor, "N 3 H W"], target: Float[Tensor, "N 3 H W"]
    ) -> Float[Tensor, " N"]:
        """Distance of each pair of images in [0, 1], float32, without a gradient."""
        with _without_autocast(predicted):
            pairs = zip(self._features(predicted), self._features(target), self._heads, strict=True)
            return torch.stack([feature_distance(*pair, self._eps) for pair in pairs]).sum(0)

    @torch.no_grad()
    def distance_and_gradient(
        self, predicted: Float[Tensor, "N 3 H W"], target: Float[Tensor, "N 3 H W"]
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, "N 3 H W"]]:
        """Distance of each pair of images in [0, 1], and its gradient in the predicted one, in float32."""
        with _without_autocast(predicted):
            wanted = self._features(target)
            maps = [rectified for rectified, _ in self._walk(predicted)]
            total, gradient = predicted.new_zeros(len(predicted), dtype=torch.float32), None
            for block, head in zip(reversed(self._blocks), reversed(self._heads), strict=True):
                distance, gradient = distance_and_gradient(
                    maps.pop(), wanted.pop(), head, self._eps, gradient
                )
                gradient = _before_block(gradient, block, maps)
                total += distance
            assert gradient is not None, "a trunk has blocks"
            return total, gradient * self._gain

    def _features(self, images: Tensor) -> list[Tensor]:
        """The map at the end of each block."""
        return [rectified for rectified, ends_block in self._walk(images) if ends_block]

    def _walk(self, images: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """Every map behind a ReLU, in order, and whether a block ends with it."""
        maps = torch.addcmul(self._offset, images.float(), self._gain)
        maps = maps.to(self._dtype, memory_format=torch.channels_last)
        for block in self._blocks:
            for convolution in block:
                maps = functional.conv2d(maps, convolution.weight, padding=1)
                if convolution is not block[-1]:
                    maps = rectify(maps, convolution.bias)
                    yield maps, False
                elif block is not self._blocks[-1]:
                    rectified, maps = rectify_and_pool(maps, convolution.bias)
                    yield rectified, True
                else:
                    yield rectify(maps, convolution.bias), True


def _convolutions(layers: nn.Module, dtype: torch.dtype) -> Iterator[Convolution]:
    for layer in layers.children():
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None, "VGG's convolutions have biases"
            weight = layer.weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
            yield Convolution(weight, layer.bias.detach().float())


def _before_block(gradient: Tensor, block: list[Convolution], maps: list[Tensor]) -> Tensor:
    """The gradient of what enters a block from that behind its last convolution; takes its maps away."""
    for convolution in reversed(block):
        # The gradient of a convolution's input. As a transposed convolution it needs no input to be kept.
        gradient = functional.conv_transpose2d(gradient, convolution.weight, padding=1)
        if convolution is not block[0]:
            gradient = mask_gradient(gradient, maps.pop())
    return gradient


def _without_autocast(images: Tensor) -> torch.autocast:
    """Keeps automatic mixed precision around the call from choosing another dtype for the convolutions."""
    return torch.autocast(images.device.type, enabled=False)
