"""Layers of the Cosmos encoder over activations [clip, frame, row, column, channel], each a plain function.

Spatial convolutions are two-dimensional with channels last; causal ones in time are matrix products over
three frames; norms run over one frame at a time, in float32. On a GPU in a 16-bit type the kernels of
`cosmos_kernels` and `cosmos_norm_kernels` do the rest; `plain` selects the torch forms everywhere,
which are the truth for the kernels.

Shape letters: N clips, F frames, H W rows and columns, C channels in, D channels out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

SCORE_BYTES = 2**30
"""Most memory for the scores of the spatial attention at one time; one frame of 704 x 1280 needs 0.8 GB."""
NEEDS_TORCH = (2, 8)
"""First version of torch whose batched products of 16-bit matrices can give float32."""


@dataclass(frozen=True)
class Norm:
    """Gain and bias of a norm with one group over each frame."""

    gain: Float[Tensor, " C"]
    """Gain per channel."""
    bias: Float[Tensor, " C"]
    """Bias per channel."""
    eps: float
    """Added to the variance."""


@dataclass(frozen=True)
class Linear:
    """A convolution of one pixel and one frame."""

    weight: Float[Tensor, "D C"]
    """Weights."""
    bias: Float[Tensor, " D"]
    """Bias."""

    def __call__(self, x: Float[Tensor, "*pixels C"]) -> Float[Tensor, "*pixels D"]:
        """W x + b for every pixel."""
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class TemporalConvolution:
    """A causal convolution over three frames; frames before the first are the first."""

    weight: Float[Tensor, "3 C D"]
    """One matrix for each tap; the last meets the current frame."""
    bias: Float[Tensor, " D"]
    """Bias, float32."""
    stride: int = 1
    """Frames from one result to the next."""


@dataclass(frozen=True)
class ConvolutionPair:
    """The codec's standard convolution: 3 x 3 in space, then three taps in time.

    The bias of the first is part of the second's: in time the edge is repeated, so a constant stays one.
    """

    spatial: Float[Tensor, "D C 3 3"]
    """Spatial weights, channels last."""
    temporal: TemporalConvolution
    """The convolution in time, with both biases."""


def is_accelerated(x: Tensor, plain: bool) -> bool:
    """Whether the Triton kernels take `x`: 16-bit on a CUDA device, and not `plain`."""
    return not plain and x.is_cuda and x.element_size() == 2


def normalise(
    x: Float[Tensor, "N F H W C"], norm: Norm, silu: bool, plain: bool = False
) -> Float[Tensor, "N F H W C"]:
    """Each frame with mean 0 and deviation 1, times gain plus bias, through SiLU if asked; float32 inside."""
    if is_accelerated(x, plain):
        from lyra_ns.codec.cosmos_norm_kernels import normalise_frames

        return normalise_frames(x.flatten(2, 3), norm.gain, norm.bias, norm.eps, silu).view_as(x)
    images = images_of_frames(x)
    images = functional.group_norm(images, 1, norm.gain, norm.bias, norm.eps)
    return frames_of_images(functional.silu(images) if silu else images, len(x))


def convolve(
    x: Float[Tensor, "N F H W C"],
    pair: ConvolutionPair,
    residual: Float[Tensor, "N F H W D"] | None = None,
    plain: bool = False,
) -> Float[Tensor, "N F H W D"]:
    """The convolution in space and in time, plus `residual`."""
    in_space = functional.conv2d(images_of_frames(x), pair.spatial, padding=1)
    return convolve_in_time(frames_of_images(in_space, len(x)), pair.temporal, residual, plain)


def convolve_in_time(
    x: Float[Tensor, "N F H W C"],
    convolution: TemporalConvolution,
    residual: Float[Tensor, "N F2 H W D"] | None = None,
    plain: bool = False,
) -> Float[Tensor, "N F2 H W D"]:
    """The causal convolution over frames, plus `residual`."""
    weight, bias = convolution.weight, convolution.bias
    if is_accelerated(x, plain) and not (weight.shape[1] % 16 or weight.shape[2] % 16):
        from lyra_ns.codec.cosmos_kernels import temporal_convolution

        flat = None if residual is None else residual.flatten(2, 3)
        return temporal_convolution(x.flatten(2, 3), weight, bias, convolution.stride, flat).unflatten(
            2, x.shape[2:4]
        )
    padded = torch.cat([x[:, :1], x[:, :1], x], 1).flatten(2, 3).permute(0, 3, 1, 2)
    taps = weight.permute(2, 1, 0)[..., None]
    result = functional.conv2d(padded, taps, bias.to(x), stride=(convolution.stride, 1))
    result = result.permute(0, 2, 3, 1).unflatten(2, x.shape[2:4])
    return (result if residual is None else result + residual).contiguous()


def halve_in_space(
    x: Float[Tensor, "N F H W C"], weight: Float[Tensor, "C C 3 3"], bias: Float[Tensor, " C"]
) -> Float[Tensor, "N F H2 W2 C"]:
    """A 3 x 3 convolution with stride 2, zeros below and to the right of the frame, plus 2 x 2 means."""
    images = images_of_frames(x)
    # Two zeros on every side put the wanted results one place on; zeros on one side would copy the frames.
    halved = functional.conv2d(images, weight, bias, stride=2, padding=2)[..., 1:, 1:]
    return frames_of_images(halved + functional.avg_pool2d(images, 2), len(x))


def pair_means(x: Float[Tensor, "N F H W C"]) -> Float[Tensor, "N F2 H W C"]:
    """The first frame, then the means of the pairs of frames behind it."""
    return torch.cat([x[:, :1], (x[:, 1::2] + x[:, 2::2]) / 2], 1)


def attend_in_space(
    projected: Float[Tensor, "N F H W C3"], plain: bool = False
) -> Float[Tensor, "N F H W C"]:
    """Attention of all pixels of a frame to each other, one head; query, key and value lie side by side."""
    rows = projected.flatten(0, 1).flatten(1, 2)
    if is_accelerated(projected, plain) and _has_float32_products():
        from lyra_ns.codec.cosmos_kernels import MAX_SOFTMAX

        if rows.shape[1] <= MAX_SOFTMAX:
            return _attend_by_products(rows).view(*projected.shape[:4], -1)
    query, key, value = (part[:, None] for part in rows.chunk(3, -1))
    return functional.scaled_dot_product_attention(query, key, value).reshape(*projected.shape[:4], -1)


def _attend_by_products(rows: Float[Tensor, "B P C3"]) -> Float[Tensor, "B P C"]:
    """Attention by two matrix products with the scores in memory between.

    Heads of 512 channels are too wide for the fused kernels, which then run at a fraction of these products.
    """
    from lyra_ns.codec.cosmos_kernels import softmax_in_place

    batch, num_rows, channels = rows.shape
    channels //= 3
    query, key, value = rows.split(channels, -1)
    out = rows.new_empty(batch, num_rows, channels)
    images = max(SCORE_BYTES // (4 * num_rows**2), 1)
    height = min(max(SCORE_BYTES // (4 * num_rows), 1), num_rows)
    for first in range(0, batch, images):
        part = slice(first, first + images)
        for top in range(0, num_rows, height):
            some = slice(top, top + height)
            scores = torch.bmm(query[part, some], key[part].transpose(1, 2), out_dtype=torch.float32)
            weights = softmax_in_place(scores, channels**-0.5, rows.dtype)
            out[part, some] = torch.bmm(weights, value[part])
            del scores, weights  # before the next scores are made: they are the encoder's largest tensors
    return out


def _has_float32_products() -> bool:
    return tuple(int(number) for number in torch.__version__.split(".")[:2]) >= NEEDS_TORCH


def attend_in_time(projected: Float[Tensor, "N F H W C3"], plain: bool = False) -> Float[Tensor, "N F H W C"]:
    """Causal attention of each pixel over its frames, one head; query, key and value lie side by side."""
    num_clips, num_frames, height, width, channels = projected.shape
    if is_accelerated(projected, plain):
        from lyra_ns.codec.cosmos_kernels import can_attend_in_time, causal_attention

        if can_attend_in_time(num_frames, channels // 3):
            return causal_attention(projected.flatten(2, 3)).unflatten(2, (height, width))
    rows = projected.permute(0, 2, 3, 1, 4).reshape(-1, 1, num_frames, channels)
    query, key, value = rows.chunk(3, -1)
    attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return attended.view(num_clips, height, width, num_frames, -1).permute(0, 3, 1, 2, 4).contiguous()


def images_of_frames(x: Float[Tensor, "N F H W C"]) -> Float[Tensor, "NF C H W"]:
    """All frames as images, in memory as they are (channels last)."""
    return x.flatten(0, 1).permute(0, 3, 1, 2)


def frames_of_images(images: Float[Tensor, "NF C H W"], num_clips: int) -> Float[Tensor, "N F H W C"]:
    """Images as the frames of `num_clips` clips; copied only if channels were not last."""
    return images.permute(0, 2, 3, 1).contiguous().unflatten(0, (num_clips, -1))
