"""The depthwise convolution before both directions of a Mamba-2 scan, as one kernel without flipped copies.

Projected tokens [gate I | x I | write S | read S | step H] are read once. Each direction has its own taps;
the second runs backwards through the sequence, so that its taps look ahead and its results are stored in the
order of its scan, the last token first. Behind the convolution follows SiLU; the step is only copied.

Shape letters: B batch, N tokens, I inner channels of one direction, S state size, H heads of one direction,
K taps. The first axis of weights, and the axis of size two of results, is the direction. Inside the kernels
everything is float32; gradients of the weights are sums over fixed blocks of tokens, the same in every run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from lyra_ns.kernels.convolution_kernels import convolution_backward_kernel, convolution_kernel
from lyra_ns.ssd_types import DirectedTokens


class Walk(NamedTuple):
    """How a kernel goes through the sequence."""

    channels: int
    """Channels that one warp holds."""
    stride: int
    """Tokens that it loads at once."""
    tokens: int
    """Tokens of one program."""


FORWARD = Walk(channels=128, stride=4, tokens=256)
"""The forward kernel holds little: wider loads and stores."""
BACKWARD = Walk(channels=64, stride=8, tokens=512)
"""The backward kernel holds sums of weight gradients, too."""


def convolve_both_directions(
    projected: Float[Tensor, "B N projected"],
    weight: Float[Tensor, "2 K channels"],
    bias: Float[Tensor, "2 channels"],
    inner_size: int,
) -> DirectedTokens:
    """Gate, x, step, write and read of both directions, in the dtype of `projected`; differentiable.

    `channels` are I of x, S of write and S of read; the last tap meets the current token. The gate is a view.
    ValueError for float64.
    """
    if projected.dtype == torch.float64:
        raise ValueError(
            "the kernels compute in float32, found float64 tokens: choose the scan backend chunked"
        )
    return DirectedTokens(*_Convolution.apply(projected.contiguous(), weight, bias, inner_size))


class _Convolution(torch.autograd.Function):
    """Keeps the projected tokens alone and convolves them again on the way back."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, weight: Tensor, bias: Tensor, inner: int) -> tuple[Tensor, ...]:
        sizes = _Sizes.of(projected, weight, inner)
        outputs = _convolve(projected, weight.contiguous(), bias.contiguous(), sizes)
        ctx.save_for_backward(projected, weight, bias)
        ctx.sizes = sizes
        return projected[..., :inner], *outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        projected, weight, bias = ctx.saved_tensors
        grad_gate, *grad_outputs = (grad.contiguous() for grad in grads)
        grad_projected, grad_taps = _convolve_backward(
            projected, weight.contiguous(), bias.contiguous(), grad_outputs, ctx.sizes
        )
        grad_projected[..., : ctx.sizes.inner] = grad_gate
        taps = ctx.sizes.taps
        return grad_projected, grad_taps[:, :taps].to(weight.dtype), grad_taps[:, taps].to(bias.dtype), None


class _Sizes(NamedTuple):
    """Sizes of one call."""

    batch: int
    tokens: int
    inner: int
    state: int
    heads: int
    taps: int

    @staticmethod
    def of(projected: Tensor, weight: Tensor, inner: int) -> _Sizes:
        channels = weight.shape[2]
        heads = projected.shape[2] - inner - channels
        assert heads > 0
        assert (channels - inner) % 2 == 0
        batch, tokens = projected.shape[:2]
        return _Sizes(batch, tokens, inner, (channels - inner) // 2, heads, weight.shape[1])

    def constants(self, walk: Walk) -> dict[str, int]:
        """Numbers that the kernels are compiled for."""
        return {
            "INNER": self.inner,
            "STATE": self.state,
            "HEADS": self.heads,
            "TAPS": self.taps,
            "CHANNEL_BLOCK": walk.channels,
            "HEAD_BLOCK": triton.next_power_of_2(self.heads),
            "TOKENS": walk.tokens,
            "STRIDE": walk.stride,
            "NUM_BLOCKS": triton.cdiv(self.inner, walk.channels) + 2 * triton.cdiv(self.state, walk.channels),
        }


def _convolve(projected: Tensor, weight: Tensor, bias: Tensor, sizes: _Sizes) -> list[Tensor]:
    """Launch the forward kernel: x, step, write, read."""
    outputs = [
        projected.new_empty(sizes.batch, sizes.tokens, 2, size)
        for size in (sizes.inner, sizes.heads, sizes.state, sizes.state)
    ]
    constants = sizes.constants(FORWARD)
    grid = (triton.cdiv(sizes.tokens, constants["TOKENS"]) * constants["NUM_BLOCKS"], sizes.batch)
    arguments = (projected, weight, bias, *outputs, sizes.tokens)
    with torch.cuda.device_of(projected):
        convolution_kernel[grid](*arguments, **constants, num_warps=1)
    return outputs


def _convolve_backward(
    projected: Tensor, weight: Tensor, bias: Tensor, grad_outputs: list[Tensor], sizes: _Sizes
) -> tuple[Tensor, Tensor]:
    """Launch the backward kernel: gradients of all projected but the gate, taps and bias [2, K+1, C]."""
    constants = sizes.constants(BACKWARD)
    num_parts = triton.cdiv(sizes.tokens, constants["TOKENS"])
    grad_projected = torch.empty_like(projected)
    parts = bias.new_empty(sizes.batch, num_parts, 2, sizes.taps + 1, bias.shape[1], dtype=torch.float32)
    grid = (num_parts * constants["NUM_BLOCKS"], sizes.batch)
    arguments = (projected, weight, bias, *grad_outputs, grad_projected, parts, sizes.tokens)
    with torch.cuda.device_of(projected):
        convolution_backward_kernel[grid](*arguments, **constants, num_warps=1)
    return grad_projected, parts.sum((0, 1))
