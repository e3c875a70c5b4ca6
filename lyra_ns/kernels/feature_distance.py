"""The comparison of two feature maps in LPIPS in one kernel: distance and gradient from one reading of both.

    distance = mean over pixels of sum over channels of w (a / (|a| + eps) - b / (|b| + eps))^2

In torch this is some twenty passes over maps in float32, at full size as long as the convolutions that make
the maps. Inside the kernel everything is float32. Shape letters: N images, C channels, H W pixels.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

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
