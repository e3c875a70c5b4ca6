"""LPIPS with VGG's frozen trunk, its gradient written out: convolutions of cuDNN, one kernel between two.

Autograd spends as long between the convolutions as in them: on biases, masks, indices of pooling and sums of
gradients. Here the maps behind the ReLUs are all that is kept, and what lies between two convolutions touches
every map once: bias and ReLU, with the 2 x 2 maximum where a block ends; on the way back the ReLU's mask, and
at the end of a block all that meets there: the feature's distance and gradient, the gradient from the block
above, the mask. Two feature maps are compared in one kernel, distance and gradient from one reading of both:

    distance = mean over pixels of sum over channels of w (a / (|a| + eps) - b / (|b| + eps))^2

In torch this is some twenty passes over maps in float32, at full size as long as the convolutions that make
the maps.

Maps are channels-last, so that a pixel's channels (a power of two of them) lie side by side. Inside the
kernels everything is float32. Shape letters: N images, C channels, H W image or pixels, h w pixels after
pooling.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

TILE = 4096
"""Numbers of one map that a program holds."""


def feature_distance(
    predicted: Float[Tensor, "N C H W"],
    target: Float[Tensor, "N C H W"],
    weights: Float[Tensor, " C"],
    eps: float,
) -> Float[Tensor, " N"]:
    """Weighted squared difference of unit features, averaged over pixels, float32.

    Differentiable in `predicted`: the gradient is computed along with the distance and kept in the type of
    `predicted` in place of both maps.
    """
    return _FeatureDistance.apply(predicted, target, weights, eps)


class _FeatureDistance(torch.autograd.Function):
    """Keeps the gradient alone."""

    @staticmethod
    def forward(ctx: Any, predicted: Tensor, target: Tensor, weights: Tensor, eps: float) -> Tensor:
        predicted = predicted.contiguous(memory_format=torch.channels_last)
        target = target.contiguous(memory_format=torch.channels_last)
        num_images, channels = predicted.shape[:2]
        num_pixels = predicted.shape[2] * predicted.shape[3]
        channel_block = triton.next_power_of_2(channels)
        pixel_block = max(1, TILE // channel_block)
        num_blocks = triton.cdiv(num_pixels, pixel_block)
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(predicted) if needs_gradient else predicted
        parts = predicted.new_empty(num_images, num_blocks, dtype=torch.float32)
        with torch.cuda.device_of(predicted):
            _feature_distance_kernel[(num_blocks, num_images)](
                predicted,
                target,
                weights.float().contiguous(),
                gradient,
                parts,
                num_pixels,
                1.0 / num_pixels,
                eps,
                CHANNELS=channels,
                CHANNEL_BLOCK=channel_block,
                PIXEL_BLOCK=pixel_block,
                NEEDS_GRADIENT=needs_gradient,
                num_warps=4,
            )
        if needs_gradient:
            ctx.save_for_backward(gradient)
        return parts.sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_out[:, None, None, None].to(gradient.dtype), None, None, None


@triton.jit
def _feature_distance_kernel(
    predicted,
    target,
    weights,
    gradient,
    parts,
    num_pixels,
    share,
    eps,
    CHANNELS: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr,
    PIXEL_BLOCK: tl.constexpr,
    NEEDS_GRADIENT: tl.constexpr,
):
    """One block of pixels of one image: its part of the distance, and the gradient of its features."""
    block, image = tl.program_id(0), tl.program_id(1)
    pixel = block * PIXEL_BLOCK + tl.arange(0, PIXEL_BLOCK)
    channel = tl.arange(0, CHANNEL_BLOCK)
    row = image.to(tl.int64) * num_pixels + pixel
    offset = row[:, None] * CHANNELS + channel[None, :]
    mask = (pixel < num_pixels)[:, None] & (channel < CHANNELS)[None, :]
    weight = tl.load(weights + channel, mask=channel < CHANNELS, other=0.0)[None, :]
    found = tl.load(predicted + offset, mask=mask, other=0.0).to(tl.float32)
    wanted = tl.load(target + offset, mask=mask, other=0.0).to(tl.float32)
    distance, slope = pixel_distances(found, wanted, weight, share, eps)
    parts_offset = image * tl.num_programs(0) + block
    tl.store(parts + parts_offset, tl.sum(distance, 0) * share)
    if NEEDS_GRADIENT:
        tl.store(gradient + offset, slope, mask=mask)


@triton.jit
def pixel_distances(found, wanted, weight, share, eps):
    """Distance [pixels] of features [pixels, channels], and `share` times its gradient in `found`."""
    length = tl.sqrt(tl.sum(found * found, 1))[:, None]
    scale = 1.0 / (length + eps)
    wanted_scale = 1.0 / (tl.sqrt(tl.sum(wanted * wanted, 1))[:, None] + eps)
    difference = found * scale - wanted * wanted_scale
    weighted = weight * difference
    slope = 2.0 * share * weighted
    # The length of a zero vector has the gradient zero, as in torch.
    along = tl.sum(slope * found, 1)[:, None] * scale * scale / tl.where(length > 0, length, 1.0)
    return tl.sum(weighted * difference, 1), slope * scale - found * along


WINDOW = 4
"""Pixels that the pooling looks at together."""


def rectify(features: Float[Tensor, "N C H W"], bias: Float[Tensor, " C"]) -> Float[Tensor, "N C H W"]:
    """ReLU of `features + bias`, written over `features` where they are channels-last."""
    return _over_pixels(_rectify_kernel, features, bias)


def rectify_and_pool(
    features: Float[Tensor, "N C H W"], bias: Float[Tensor, " C"]
) -> tuple[Float[Tensor, "N C H W"], Float[Tensor, "N C h w"]]:
    """As `rectify`, and the largest of every whole 2 x 2 window of it; h, w are H, W halved and floored."""
    features = features.contiguous(memory_format=torch.channels_last)
    _, channels, height, width = features.shape
    pooled = torch.empty_like(features[..., : height // 2, : width // 2], memory_format=torch.channels_last)
    windows = _windows_of_program(channels)
    with torch.cuda.device_of(features):
        _rectify_and_pool_kernel[_grid(features, windows)](
            features, bias, pooled, height, width, CHANNELS=channels, WINDOWS=windows, num_warps=4
        )
    return features, pooled


def mask_gradient(
    gradient: Float[Tensor, "N C H W"], rectified: Float[Tensor, "N C H W"]
) -> Float[Tensor, "N C H W"]:
    """The gradient before a ReLU from that behind it, written over `gradient` where it is channels-last."""
    return _over_pixels(_mask_gradient_kernel, gradient, rectified)


def _over_pixels(kernel: Any, maps: Tensor, other: Tensor) -> Tensor:
    """`maps` after a kernel has gone over all their pixels, channels-last, with what it reads beside them."""
    maps = maps.contiguous(memory_format=torch.channels_last)
    channels = maps.shape[1]
    num_pixels = maps.numel() // channels
    pixels = max(1, TILE // channels)
    with torch.cuda.device_of(maps):
        kernel[(triton.cdiv(num_pixels, pixels),)](
            maps, other, num_pixels, CHANNELS=channels, PIXELS=pixels, num_warps=4
        )
    return maps


def distance_and_gradient(
    predicted: Float[Tensor, "N C H W"],
    target: Float[Tensor, "N C H W"],
    weights: Float[Tensor, " C"],
    eps: float,
    from_above: Float[Tensor, "N C h w"] | None,
) -> tuple[Float[Tensor, " N"], Float[Tensor, "N C H W"]]:
    """Distance of features as `feature_distance` has it, and the gradient before the ReLU that made them.

    That gradient is of the sum of distances; `from_above` is what reaches the pooled features. It goes to the
    first of the largest in each window, as in torch; equal zeros get nothing through the ReLU.
    """
    num_images, channels, height, width = predicted.shape
    gradient = torch.empty_like(predicted)
    windows = _windows_of_program(channels)
    grid = _grid(predicted, windows)
    parts = predicted.new_empty(num_images, grid[0] * grid[1], dtype=torch.float32)
    if from_above is not None:
        from_above = from_above.contiguous(memory_format=torch.channels_last)
    with torch.cuda.device_of(predicted):
        _distance_and_gradient_kernel[grid](
            predicted,
            target,
            weights,
            predicted if from_above is None else from_above,
            gradient,
            parts,
            height,
            width,
            1.0 / (height * width),
            eps,
            CHANNELS=channels,
            WINDOWS=windows,
            IS_POOLED=from_above is not None,
            num_warps=4,
        )
    return parts.sum(1), gradient


def _windows_of_program(channels: int) -> int:
    return max(1, TILE // WINDOW // channels)


def _grid(features: Tensor, windows: int) -> tuple[int, int, int]:
    """Programs along a row of windows, rows of windows, images; windows at odd borders are included."""
    num_images, _, height, width = features.shape
    return triton.cdiv(triton.cdiv(width, 2), windows), triton.cdiv(height, 2), num_images


@triton.jit
def _rectified(features, shift):
    """ReLU that keeps what is not a number, as in torch."""
    shifted = features.to(tl.float32) + shift
    return tl.where(shifted < 0, 0.0, shifted)


@triton.jit
def _larger(first, second):
    return tl.maximum(first, second, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _place(image, row, column, height, width, CHANNELS: tl.constexpr):
    """Offsets [pixels, channels] of pixels in one row, and whether [pixels, 1] they are inside the map."""
    pixel = (image * height + row) * width + column
    inside = (row < height) & (column < width)
    return pixel[:, None] * CHANNELS + tl.arange(0, CHANNELS)[None, :], inside[:, None]


@triton.jit
def _run(num_pixels, CHANNELS: tl.constexpr, PIXELS: tl.constexpr):
    """Offsets [pixels, channels] of a program's run of pixels, and whether [pixels, 1] there are such."""
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)[:, None]
    return pixel * CHANNELS + tl.arange(0, CHANNELS)[None, :], pixel < num_pixels


@triton.jit
def _rectify_kernel(features, bias, num_pixels, CHANNELS: tl.constexpr, PIXELS: tl.constexpr):
    """A run of pixels. Here as below, maps are loaded before what all programs share, to wait once."""
    offset, mask = _run(num_pixels, CHANNELS, PIXELS)
    value = tl.load(features + offset, mask=mask)
    shift = tl.load(bias + tl.arange(0, CHANNELS))[None, :]
    tl.store(features + offset, _rectified(value, shift), mask=mask)


@triton.jit
def _mask_gradient_kernel(gradient, rectified, num_pixels, CHANNELS: tl.constexpr, PIXELS: tl.constexpr):
    """A run of pixels."""
    offset, mask = _run(num_pixels, CHANNELS, PIXELS)
    value = tl.load(gradient + offset, mask=mask).to(tl.float32)
    is_cut = tl.load(rectified + offset, mask=mask).to(tl.float32) <= 0
    tl.store(gradient + offset, tl.where(is_cut, 0.0, value), mask=mask)


@triton.jit
def _rectify_and_pool_kernel(
    features, bias, pooled, height, width, CHANNELS: tl.constexpr, WINDOWS: tl.constexpr
):
    """Some windows of one row of windows; all loads come before the first store, to be under way together."""
    image, row = tl.program_id(2).to(tl.int64), tl.program_id(1)
    column = tl.program_id(0) * WINDOWS + tl.arange(0, WINDOWS)
    offset_1, mask_1 = _place(image, 2 * row, 2 * column, height, width, CHANNELS)
    offset_2, mask_2 = _place(image, 2 * row, 2 * column + 1, height, width, CHANNELS)
    offset_3, mask_3 = _place(image, 2 * row + 1, 2 * column, height, width, CHANNELS)
    offset_4, mask_4 = _place(image, 2 * row + 1, 2 * column + 1, height, width, CHANNELS)
    value_1 = tl.load(features + offset_1, mask=mask_1, other=0.0)
    value_2 = tl.load(features + offset_2, mask=mask_2, other=0.0)
    value_3 = tl.load(features + offset_3, mask=mask_3, other=0.0)
    value_4 = tl.load(features + offset_4, mask=mask_4, other=0.0)
    shift = tl.load(bias + tl.arange(0, CHANNELS))[None, :]
    value_1 = _rectified(value_1, shift)
    value_2 = _rectified(value_2, shift)
    value_3 = _rectified(value_3, shift)
    value_4 = _rectified(value_4, shift)
    tl.store(features + offset_1, value_1, mask=mask_1)
    tl.store(features + offset_2, value_2, mask=mask_2)
    tl.store(features + offset_3, value_3, mask=mask_3)
    tl.store(features + offset_4, value_4, mask=mask_4)
    largest = _larger(_larger(value_1, value_2), _larger(value_3, value_4))
    offset, mask = _place(image, row, column, height // 2, width // 2, CHANNELS)
    tl.store(pooled + offset, largest, mask=mask)


@triton.jit
def _distance_and_gradient_kernel(
    predicted,
    target,
    weights,
    from_above,
    gradient,
    parts,
    height,
    width,
    share,
    eps,
    CHANNELS: tl.constexpr,
    WINDOWS: tl.constexpr,
    IS_POOLED: tl.constexpr,
):
    """Some windows of one row of windows, whose pixels count from 1 to 4 in the order of rows."""
    image, row = tl.program_id(2).to(tl.int64), tl.program_id(1)
    column = tl.program_id(0) * WINDOWS + tl.arange(0, WINDOWS)
    offset_1, mask_1 = _place(image, 2 * row, 2 * column, height, width, CHANNELS)
    offset_2, mask_2 = _place(image, 2 * row, 2 * column + 1, height, width, CHANNELS)
    offset_3, mask_3 = _place(image, 2 * row + 1, 2 * column, height, width, CHANNELS)
    offset_4, mask_4 = _place(image, 2 * row + 1, 2 * column + 1, height, width, CHANNELS)
    found_1 = tl.load(predicted + offset_1, mask=mask_1, other=0.0).to(tl.float32)
    found_2 = tl.load(predicted + offset_2, mask=mask_2, other=0.0).to(tl.float32)
    found_3 = tl.load(predicted + offset_3, mask=mask_3, other=0.0).to(tl.float32)
    found_4 = tl.load(predicted + offset_4, mask=mask_4, other=0.0).to(tl.float32)
    wanted_1 = tl.load(target + offset_1, mask=mask_1, other=0.0).to(tl.float32)
    wanted_2 = tl.load(target + offset_2, mask=mask_2, other=0.0).to(tl.float32)
    wanted_3 = tl.load(target + offset_3, mask=mask_3, other=0.0).to(tl.float32)
    wanted_4 = tl.load(target + offset_4, mask=mask_4, other=0.0).to(tl.float32)
    weight = tl.load(weights + tl.arange(0, CHANNELS))[None, :]
    distance_1, gradient_1 = pixel_distances(found_1, wanted_1, weight, share, eps)
    distance_2, gradient_2 = pixel_distances(found_2, wanted_2, weight, share, eps)
    distance_3, gradient_3 = pixel_distances(found_3, wanted_3, weight, share, eps)
    distance_4, gradient_4 = pixel_distances(found_4, wanted_4, weight, share, eps)
    if IS_POOLED:
        offset, mask = _place(image, row, column, height // 2, width // 2, CHANNELS)
        routed = tl.load(from_above + offset, mask=mask, other=0.0).to(tl.float32)
        largest = _larger(_larger(found_1, found_2), _larger(found_3, found_4))
        is_1 = found_1 == largest
        is_2 = (found_2 == largest) & (is_1 == 0)
        is_3 = (found_3 == largest) & ((is_1 | is_2) == 0)
        is_4 = (is_1 | is_2 | is_3) == 0
        gradient_1 += tl.where(is_1, routed, 0.0)
        gradient_2 += tl.where(is_2, routed, 0.0)
        gradient_3 += tl.where(is_3, routed, 0.0)
        gradient_4 += tl.where(is_4, routed, 0.0)
    tl.store(gradient + offset_1, tl.where(found_1 <= 0, 0.0, gradient_1), mask=mask_1)
    tl.store(gradient + offset_2, tl.where(found_2 <= 0, 0.0, gradient_2), mask=mask_2)
    tl.store(gradient + offset_3, tl.where(found_3 <= 0, 0.0, gradient_3), mask=mask_3)
    tl.store(gradient + offset_4, tl.where(found_4 <= 0, 0.0, gradient_4), mask=mask_4)
    block = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    distance = tl.sum(distance_1 + distance_2 + distance_3 + distance_4, 0)
    tl.store(parts + image * tl.num_programs(0) * tl.num_programs(1) + block, distance * share)


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
