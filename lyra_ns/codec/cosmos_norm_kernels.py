"""Triton kernels of the Cosmos encoder for norms with one group over each frame.

`cosmos_layers` holds the same operation in plain torch. Moments are float32; no float32 copy of an activation
is written, and SiLU costs no pass of its own.

Shape letters: N clips, F frames, P pixels of a frame, C channels.
"""

# `no_type_check` keeps run-time type checkers from wrapping the kernels, whose source Triton compiles.
from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

STATISTICS_BLOCK = 4096
"""Numbers of a frame that one program of the statistics adds at a time."""
MAX_SPANS = 256
"""Programs that share the statistics of one frame, at most."""
NORM_TILE = 8192
"""Numbers that one program normalises."""


@triton.jit
@no_type_check
def _span_moments(x_ptr, sum_ptr, square_ptr, frame_size, span, BLOCK: tl.constexpr):
    """Sum and summed square of (x - first number of the frame), for one span of one frame."""
    frame = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * span
    base = x_ptr + frame * frame_size
    origin = tl.load(base).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for offset in range(0, span, BLOCK):
        place = start + offset + tl.arange(0, BLOCK)
        inside = place < frame_size
        x = tl.load(base + place, mask=inside, other=0.0).to(tl.float32)
        x = tl.where(inside, x - origin, 0.0)
        total += x
        squares += x * x
    slot = frame * tl.num_programs(1) + tl.program_id(1)
    tl.store(sum_ptr + slot, tl.sum(total, 0))
    tl.store(square_ptr + slot, tl.sum(squares, 0))


@triton.jit
@no_type_check
def _merge_moments(
    x_ptr, sum_ptr, square_ptr, moments_ptr, frame_size, span, num_spans, eps, BLOCK: tl.constexpr
):
    """Mean and reciprocal deviation of one frame, from squares about the means of its spans."""
    frame = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK)
    used = index < num_spans
    origin = tl.load(x_ptr + frame * frame_size).to(tl.float32)
    total = tl.load(sum_ptr + frame * num_spans + index, mask=used, other=0.0)
    squares = tl.load(square_ptr + frame * num_spans + index, mask=used, other=0.0)
    count = tl.minimum(tl.maximum(frame_size - index * span, 1), span).to(tl.float32)
    mean = tl.sum(total, 0) / frame_size
    local = total / count
    spread = tl.where(used, squares - total * local + count * (local - mean) * (local - mean), 0.0)
    variance = tl.maximum(tl.sum(spread, 0) / frame_size, 0.0)
    tl.store(moments_ptr + 2 * frame, mean + origin)
    tl.store(moments_ptr + 2 * frame + 1, 1.0 / tl.sqrt(variance + eps))


@triton.jit
@no_type_check
def _normalise(
    x_ptr,
    out_ptr,
    moments_ptr,
    gain_ptr,
    bias_ptr,
    num_pixels,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    SILU: tl.constexpr,
):
    """One tile [ROWS, CHANNELS] of (x - mean) / deviation * gain + bias, through SiLU if asked."""
    frame = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    mean = tl.load(moments_ptr + 2 * frame)
    scale = tl.load(moments_ptr + 2 * frame + 1)
    known = channel < CHANNELS
    gain = tl.load(gain_ptr + channel, mask=known, other=0.0).to(tl.float32) * scale
    bias = tl.load(bias_ptr + channel, mask=known, other=0.0).to(tl.float32)
    place = frame * num_pixels * CHANNELS + pixel[:, None].to(tl.int64) * CHANNELS + channel[None, :]
    inside = (pixel < num_pixels)[:, None] & known[None, :]
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    y = (x - mean) * gain[None, :] + bias[None, :]
    if SILU:
        y = y * (1.0 / (1.0 + tl.exp(-y)))
    tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=inside)


def normalise_frames(
    x: Float[Tensor, "N F P C"],
    gain: Float[Tensor, " C"],
    bias: Float[Tensor, " C"],
    eps: float,
    silu: bool,
) -> Float[Tensor, "N F P C"]:
    """Each frame with mean 0 and deviation 1, times gain plus bias, through SiLU if asked."""
    x = x.contiguous()
    num_clips, num_frames, num_pixels, channels = x.shape
    frames, frame_size = num_clips * num_frames, num_pixels * channels
    blocks = triton.cdiv(frame_size, STATISTICS_BLOCK)
    span = triton.cdiv(blocks, min(blocks, MAX_SPANS)) * STATISTICS_BLOCK
    num_spans = triton.cdiv(frame_size, span)
    sums, squares = x.new_empty(2, frames, num_spans, dtype=torch.float32)
    moments = x.new_empty(frames, 2, dtype=torch.float32)
    _span_moments[(frames, num_spans)](x, sums, squares, frame_size, span, BLOCK=STATISTICS_BLOCK)
    _merge_moments[(frames,)](
        x, sums, squares, moments, frame_size, span, num_spans, eps, BLOCK=triton.next_power_of_2(num_spans)
    )
    out = torch.empty_like(x)
    width = triton.next_power_of_2(channels)
    rows = max(NORM_TILE // width, 1)
    _normalise[(triton.cdiv(num_pixels, rows), frames)](
        x,
        out,
        moments,
        gain,
        bias,
        num_pixels,
        CHANNELS=channels,
        WIDTH=width,
        ROWS=rows,
        SILU=silu,
        num_warps=8,
    )
    return out
