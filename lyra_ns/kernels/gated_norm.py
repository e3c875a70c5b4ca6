"""The end of both directions of a Mamba-2 layer in one kernel: gate, norm of each direction, sum.

    sum over directions d of   weight_d  u_d / sqrt(mean(u_d^2) + eps),   u_d = y_d SiLU(gate)

The result of direction 1 lies in the order of its scan, the last token first, and is read backwards: nothing
is flipped in memory. Inside the kernels everything is float32. Shape letters: B batch, N tokens, I inner
channels of one direction; the axis of size two is the direction.
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
BACKWARD_BLOCK = 2
"""Tokens that a program of the backward kernel holds at a time."""
BACKWARD_TOKENS = 64
"""Tokens that it walks through, to write one sum of weight gradients."""


def gated_norm_sum(
    y: Float[Tensor, "B N 2 I"],
    gate: Float[Tensor, "B N I"],
    weight: Float[Tensor, "2 I"],
    eps: float,
) -> Float[Tensor, "B N I"]:
    """Sum of the gated and normed results of both directions, in the dtype of `y`; differentiable.

    `y` of direction 1 runs from the last token to the first, `gate` (before its SiLU) in the order of the
    tokens and may be a slice of wider rows.
    """
    if gate.stride(-1) != 1:
        gate = gate.contiguous()
    return _GatedNormSum.apply(y.contiguous(), gate, weight, eps)


class _GatedNormSum(torch.autograd.Function):
    """Keeps its inputs alone."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
        batch, tokens, _, inner = y.shape
        out = torch.empty_like(gate, dtype=y.dtype, memory_format=torch.contiguous_format)
        with torch.cuda.device_of(y):
            _gated_norm_kernel[(triton.cdiv(tokens, FORWARD_BLOCK), batch)](
                y,
                gate,
                weight.contiguous(),
                out,
                tokens,
                gate.stride(0),
                gate.stride(1),
                eps,
                INNER=inner,
                TOKEN_BLOCK=FORWARD_BLOCK,
                CHANNEL_BLOCK=triton.next_power_of_2(inner),
                num_warps=4,
            )
        ctx.save_for_backward(y, gate, weight)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        y, gate, weight = ctx.saved_tensors
        batch, tokens, _, inner = y.shape
        num_parts = triton.cdiv(tokens, BACKWARD_TOKENS)
        grad_y = torch.empty_like(y)
        grad_gate = torch.empty_like(gate, memory_format=torch.contiguous_format)
        parts = weight.new_empty(batch, num_parts, 2, inner, dtype=torch.float32)
        with torch.cuda.device_of(y):
            _gated_norm_backward_kernel[(num_parts, batch)](
                y,
                gate,
                weight.contiguous(),
                grad_out.contiguous(),
                grad_y,
                grad_gate,
                parts,
                tokens,
                gate.stride(0),
                gate.stride(1),
                ctx.eps,
                INNER=inner,
                TOKEN_BLOCK=BACKWARD_BLOCK,
                CHANNEL_BLOCK=triton.next_power_of_2(inner),
                TOKENS=BACKWARD_TOKENS,
                num_warps=4,
            )
        return grad_y, grad_gate, parts.sum((0, 1)).to(weight.dtype), None


@triton.jit
def _load_rows(pointers, mask):
    """A tile in float32."""
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _normed(value, eps, INNER: tl.constexpr):
    """The tile over its root mean square, and one over that."""
    scale = tl.rsqrt(tl.sum(value * value, 1) / INNER + eps)[:, None]
    return value * scale, scale


@triton.jit
def _gated_norm_kernel(
    y,
    gate,
    weight,
    out,
    num_tokens,
    gate_batch_stride,
    gate_token_stride,
    eps,
    INNER: tl.constexpr,
    TOKEN_BLOCK: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr,
):
    """One block of tokens."""
    start = tl.program_id(0) * TOKEN_BLOCK
    batch = tl.program_id(1).to(tl.int64)
    sequence = batch * num_tokens
    row = tl.arange(0, TOKEN_BLOCK)[:, None]
    channel = tl.arange(0, CHANNEL_BLOCK)[None, :]
    mask = (start + row < num_tokens) & (channel < INNER)
    gates = gate + batch * gate_batch_stride + tl.cast(start, tl.int64) * gate_token_stride
    opened = _load_rows(gates + (row * gate_token_stride + channel), mask)
    opened *= tl.sigmoid(opened)
    ahead = _load_rows(y + (sequence + start) * (2 * INNER) + (row * (2 * INNER) + channel), mask)
    last = (sequence + num_tokens - 1 - start) * 2 + 1
    back = _load_rows(y + last * INNER + (channel - row * (2 * INNER)), mask)
    ahead, _ = _normed(ahead * opened, eps, INNER)
    back, _ = _normed(back * opened, eps, INNER)
    total = ahead * _load_rows(weight + channel, channel < INNER)
    total += back * _load_rows(weight + INNER + channel, channel < INNER)
    tl.store(out + (sequence + start) * INNER + (row * INNER + channel), total, mask=mask)


@triton.jit
def _norm_backward(value, opened, grad, weight, eps, INNER: tl.constexpr):
    """Gradients of the scanned value, of the opened gate, and of the norm's weight in this tile."""
    normed, scale = _normed(value * opened, eps, INNER)
    grad_weight = tl.sum(grad * normed, 0)[None, :]
    grad *= weight
    grad = scale * (grad - normed * (tl.sum(grad * normed, 1)[:, None] / INNER))
    return grad * opened, grad * value, grad_weight


@triton.jit
def _gated_norm_backward_kernel(
    y,
    gate,
    weight,
    grad_out,
    grad_y,
    grad_gate,
    parts,
    num_tokens,
    gate_batch_stride,
    gate_token_stride,
    eps,
    INNER: tl.constexpr,
    TOKEN_BLOCK: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """TOKENS tokens, a block after the other."""
    batch = tl.program_id(1).to(tl.int64)
    sequence = batch * num_tokens
    row = tl.arange(0, TOKEN_BLOCK)[:, None]
    channel = tl.arange(0, CHANNEL_BLOCK)[None, :]
    weight_ahead = _load_rows(weight + channel, channel < INNER)
    weight_back = _load_rows(weight + INNER + channel, channel < INNER)
    part_ahead = tl.zeros((1, CHANNEL_BLOCK), tl.float32)
    part_back = tl.zeros((1, CHANNEL_BLOCK), tl.float32)
    begin = tl.program_id(0) * TOKENS
    for start in range(begin, tl.minimum(begin + TOKENS, num_tokens), TOKEN_BLOCK):
        mask = (start + row < num_tokens) & (channel < INNER)
        gates = gate + batch * gate_batch_stride + tl.cast(start, tl.int64) * gate_token_stride
        closed = _load_rows(gates + (row * gate_token_stride + channel), mask)
        share = tl.sigmoid(closed)
        opened = closed * share
        token = (sequence + start) * INNER
        grad = _load_rows(grad_out + token + (row * INNER + channel), mask)
        ahead_offset = token * 2 + (row * (2 * INNER) + channel)
        grad_ahead, grad_opened, grad_weight = _norm_backward(
            _load_rows(y + ahead_offset, mask), opened, grad, weight_ahead, eps, INNER
        )
        part_ahead += grad_weight
        tl.store(grad_y + ahead_offset, grad_ahead, mask=mask)
        back_offset = ((sequence + num_tokens - 1 - start) * 2 + 1) * INNER + (channel - row * (2 * INNER))
        grad_back, grad_opened_back, grad_weight = _norm_backward(
            _load_rows(y + back_offset, mask), opened, grad, weight_back, eps, INNER
        )
        part_back += grad_weight
        tl.store(grad_y + back_offset, grad_back, mask=mask)
        grad_closed = (grad_opened + grad_opened_back) * share * (1 + closed * (1 - share))
        tl.store(grad_gate + token + (row * INNER + channel), grad_closed, mask=mask)
    part = parts + (batch * tl.num_programs(0) + tl.program_id(0)) * (2 * INNER)
    tl.store(part + channel, part_ahead, mask=channel < INNER)
    tl.store(part + INNER + channel, part_back, mask=channel < INNER)
