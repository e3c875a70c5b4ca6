"""The root-mean-square norm at the start of a residual branch; its gradient is added to that of the stream.

The norm reads the stream once and writes the dtype in which the branch works, so that automatic mixed
precision copies no tokens; the backward kernel adds the gradient that reaches the stream past the branch.
Inside the kernels everything is float32.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

FORWARD_BLOCK = 4
"""Tokens of one program in the forward kernel."""
BACKWARD_BLOCK = 4
"""Tokens that a program of the backward kernel holds at a time."""
BACKWARD_TOKENS = 128
"""Tokens that it walks through, to write one sum of weight gradients."""


def branch_norm(
    stream: Float[Tensor, "B N E"], weight: Float[Tensor, " E"], eps: float, dtype: torch.dtype
) -> tuple[Float[Tensor, "B N E"], Float[Tensor, "B N E"]]:
    """The stream itself, and its tokens over their root mean square times `weight`, in `dtype`.

    ValueError for float64. The sum `stream + branch(normed)` of both results has one fused gradient.
    """
    if stream.dtype == torch.float64:
        raise ValueError(
            "the kernels compute in float32, found a float64 stream: choose the scan backend chunked"
        )
    return _BranchNorm.apply(stream.contiguous(), weight, eps, dtype)


class _BranchNorm(torch.autograd.Function):
    """Keeps its inputs alone."""

    @staticmethod
    def forward(
        ctx: Any, stream: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        width = stream.shape[-1]
        num_tokens = stream.numel() // width
        normed = torch.empty_like(stream, dtype=dtype)
        with torch.cuda.device_of(stream):
            _branch_norm_kernel[(triton.cdiv(num_tokens, FORWARD_BLOCK),)](
                stream,
                weight.contiguous(),
                normed,
                num_tokens,
                eps,
                WIDTH=width,
                TOKEN_BLOCK=FORWARD_BLOCK,
                CHANNEL_BLOCK=triton.next_power_of_2(width),
                num_warps=4,
            )
        ctx.save_for_backward(stream, weight)
        ctx.eps = eps
        return stream.view_as(stream), normed

    @staticmethod
    def backward(ctx: Any, grad_stream: Tensor, grad_normed: Tensor) -> tuple[Tensor | None, ...]:
        stream, weight = ctx.saved_tensors
        width = stream.shape[-1]
        num_tokens = stream.numel() // width
        num_parts = triton.cdiv(num_tokens, BACKWARD_TOKENS)
        grad = torch.empty_like(stream)
        parts = weight.new_empty(num_parts, width, dtype=torch.float32)
        with torch.cuda.device_of(stream):
            _branch_norm_backward_kernel[(num_parts,)](
                stream,
                weight.contiguous(),
                grad_stream.contiguous(),
                grad_normed.contiguous(),
                grad,
                parts,
                num_tokens,
                ctx.eps,
                WIDTH=width,
                TOKEN_BLOCK=BACKWARD_BLOCK,
                CHANNEL_BLOCK=triton.next_power_of_2(width),
                TOKENS=BACKWARD_TOKENS,
                num_warps=4,
            )
        return grad, parts.sum(0).to(weight.dtype), None, None


@triton.jit
def _branch_norm_kernel(
    stream,
    weight,
    normed,
    num_tokens,
    eps,
    WIDTH: tl.constexpr,
    TOKEN_BLOCK: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr,
):
    """One block of tokens."""
    start = tl.program_id(0).to(tl.int64) * TOKEN_BLOCK
    row = tl.arange(0, TOKEN_BLOCK)[:, None]
    channel = tl.arange(0, CHANNEL_BLOCK)[None, :]
    mask = (start + row < num_tokens) & (channel < WIDTH)
    offset = row * WIDTH + channel
    tokens = tl.load(stream + start * WIDTH + offset, mask=mask, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(tokens * tokens, 1) / WIDTH + eps)[:, None]
    gain = tl.load(weight + channel, mask=channel < WIDTH, other=0.0).to(tl.float32)
    tl.store(normed + start * WIDTH + offset, tokens * scale * gain, mask=mask)


@triton.jit
def _branch_norm_backward_kernel(
    stream,
    weight,
    grad_stream,
    grad_normed,
    grad,
    parts,
    num_tokens,
    eps,
    WIDTH: tl.constexpr,
    TOKEN_BLOCK: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """TOKENS tokens, a block after the other."""
    row = tl.arange(0, TOKEN_BLOCK)[:, None]
    channel = tl.arange(0, CHANNEL_BLOCK)[None, :]
    gain = tl.load(weight + channel, mask=channel < WIDTH, other=0.0).to(tl.float32)
    part = tl.zeros((1, CHANNEL_BLOCK), tl.float32)
    begin = tl.program_id(0) * TOKENS
    for start in range(begin, tl.minimum(begin + TOKENS, num_tokens), TOKEN_BLOCK):
        mask = (start + row < num_tokens) & (channel < WIDTH)
        offset = tl.cast(start, tl.int64) * WIDTH + (row * WIDTH + channel)
        tokens = tl.load(stream + offset, mask=mask, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(tokens * tokens, 1) / WIDTH + eps)[:, None]
        tokens *= scale
        inner = tl.load(grad_normed + offset, mask=mask, other=0.0).to(tl.float32)
        part += tl.sum(inner * tokens, 0)[None, :]
        inner *= gain
        inner = scale * (inner - tokens * (tl.sum(inner * tokens, 1)[:, None] / WIDTH))
        past = tl.load(grad_stream + offset, mask=mask, other=0.0).to(tl.float32)
        tl.store(grad + offset, past + inner, mask=mask)
    tl.store(parts + tl.program_id(0).to(tl.int64) * WIDTH + channel, part, mask=channel < WIDTH)
