"""Norms that are one kernel with what stands before or behind them; inside, everything is float32.

Without gradient, the end of one residual branch and the norm at the start of the next:

    stream' = stream + update          normed = weight (stream' - mean) / deviation + bias

in which a root-mean-square norm has no mean and no bias. The stream is read once in place of twice; the norm
sees it as it is stored.

With gradient, the root-mean-square norm at the start of a residual branch reads the stream once and writes
the dtype in which the branch works, so that automatic mixed precision copies no tokens; the backward kernel
adds the gradient that reaches the stream past the branch.

The end of both directions of a Mamba-2 layer, gate, norm of each direction and sum:

    sum over directions d of   weight_d  u_d / sqrt(mean(u_d^2) + eps),   u_d = y_d SiLU(gate)

The result of direction 1 lies in the order of its scan, the last token first, and is read backwards: nothing
is flipped in memory. Shape letters: B batch, N tokens, I inner channels of one direction; the axis of size
two is the direction.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor, nn

BLOCK = 4
"""Tokens of one program."""


def add_and_norm(
    stream: Float[Tensor, "B N E"],
    update: Float[Tensor, "B N E"] | None,
    norm: nn.RMSNorm | nn.LayerNorm,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "B N E"], Float[Tensor, "B N E"]]:
    """The stream with `update` added, in its own dtype, and its norm in `dtype`; neither has a gradient.

    Without an update the stream itself comes back. ValueError for float64 and where a gradient is wanted.
    """
    _check(stream, norm)
    stream = stream.contiguous()
    width = stream.shape[-1]
    num_tokens = stream.numel() // width
    added = stream if update is None else torch.empty_like(stream)
    normed = torch.empty_like(stream, dtype=dtype)
    with torch.cuda.device_of(stream):
        _add_and_norm_kernel[(triton.cdiv(num_tokens, BLOCK),)](
            stream,
            stream if update is None else update.contiguous(),
            norm.weight.contiguous(),
            norm.weight if (bias := getattr(norm, "bias", None)) is None else bias.contiguous(),
            added,
            normed,
            num_tokens,
            norm.eps,
            WIDTH=width,
            TOKEN_BLOCK=BLOCK,
            CHANNEL_BLOCK=triton.next_power_of_2(width),
            HAS_UPDATE=update is not None,
            HAS_BIAS=bias is not None,
            CENTRED=isinstance(norm, nn.LayerNorm),
            num_warps=4,
        )
    return added, normed


def _check(stream: Tensor, norm: nn.RMSNorm | nn.LayerNorm) -> None:
    if stream.dtype == torch.float64:
        raise ValueError(
            "the kernel computes in float32, found a float64 stream: choose the scan backend chunked"
        )
    if torch.is_grad_enabled() and (stream.requires_grad or norm.weight.requires_grad):
        raise ValueError(
            "the kernel has no gradient, found one wanted: call it under torch.no_grad, or branch_norm"
        )


@triton.jit
def _add_and_norm_kernel(
    stream,
    update,
    weight,
    bias,
    added,
    normed,
    num_tokens,
    eps,
    WIDTH: tl.constexpr,
    TOKEN_BLOCK: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr,
    HAS_UPDATE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CENTRED: tl.constexpr,
):
    """One block of tokens."""
    start = tl.program_id(0).to(tl.int64) * TOKEN_BLOCK
    row = tl.arange(0, TOKEN_BLOCK)[:, None]
    channel = tl.arange(0, CHANNEL_BLOCK)[None, :]
    is_channel = channel < WIDTH
    mask = (start + row < num_tokens) & is_channel
    place = start * WIDTH + (row * WIDTH + channel)
    tokens = tl.load(stream + place, mask=mask, other=0.0)
    if HAS_UPDATE:
        change = tl.load(update + place, mask=mask, other=0.0).to(tl.float32)
        tokens = (tokens.to(tl.float32) + change).to(added.dtype.element_ty)
        tl.store(added + place, tokens, mask=mask)
    tokens = tokens.to(tl.float32)
    if CENTRED:
        tokens = tl.where(is_channel, tokens - (tl.sum(tokens, 1) / WIDTH)[:, None], 0.0)
    tokens *= tl.rsqrt(tl.sum(tokens * tokens, 1) / WIDTH + eps)[:, None]
    tokens *= tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32)
    if HAS_BIAS:
        tokens += tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)
    tl.store(normed + place, tokens, mask=mask)


FORWARD_BLOCK = 4
"""Tokens of one program in the forward kernel."""
RESIDUAL_BACKWARD_BLOCK = 4
"""Tokens that a program of the backward kernel holds at a time."""
RESIDUAL_BACKWARD_TOKENS = 128
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
        num_parts = triton.cdiv(num_tokens, RESIDUAL_BACKWARD_TOKENS)
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
                TOKEN_BLOCK=RESIDUAL_BACKWARD_BLOCK,
                CHANNEL_BLOCK=triton.next_power_of_2(width),
                TOKENS=RESIDUAL_BACKWARD_TOKENS,
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


GATED_BACKWARD_BLOCK = 2
"""Tokens that a program of the backward kernel holds at a time."""
GATED_BACKWARD_TOKENS = 64
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
        num_parts = triton.cdiv(tokens, GATED_BACKWARD_TOKENS)
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
                TOKEN_BLOCK=GATED_BACKWARD_BLOCK,
                CHANNEL_BLOCK=triton.next_power_of_2(inner),
                TOKENS=GATED_BACKWARD_TOKENS,
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
