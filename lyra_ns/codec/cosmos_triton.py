"""Triton kernels of the Cosmos encoder: convolution in time, attention, and norms over each frame.

`cosmos_encoder` holds the same operations in plain torch, which are the truth for these; it imports this file
only for tensors on a GPU. Channels lie last. Norms have one group. All sums and moments are float32; no
float32 copy of an activation is written, and SiLU costs no pass of its own.

Shape letters: N clips, F frames, P pixels of a frame, C channels in, D channels out.
"""

# `no_type_check` keeps run-time type checkers from wrapping the kernels, whose source Triton compiles.

from __future__ import annotations

from functools import cache
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

MAX_SOFTMAX = 32768
"""Longest row of scores that one program can hold in registers."""
MAX_ATTENDED_FRAMES = 32
"""Most frames that one program of the temporal attention can hold."""
MAX_ATTENDED_CHANNELS = 512
"""Most channels of a head that it can hold."""


class Tile(NamedTuple):
    """How a matrix product is cut into programs."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int


@triton.jit
@no_type_check
def _temporal_convolution(
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    num_pixels,
    frames_in,
    frames_out,
    num_row_tiles,
    CHANNELS_IN: tl.constexpr,
    CHANNELS_OUT: tl.constexpr,
    STRIDE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    """One tile of a causal three-tap convolution in time, as one matrix product over taps and channels.

    Frames before the first are the first: an index, not a copy. Programs of all frames of one place run side
    by side, so that a frame is read from memory once and by the other taps from the cache.
    """
    program = tl.program_id(0)
    column_tile = program % (CHANNELS_OUT // COLUMNS)
    program = program // (CHANNELS_OUT // COLUMNS)
    frame = program % frames_out
    program = program // frames_out
    row_tile = program % num_row_tiles
    clip = (program // num_row_tiles).to(tl.int64)

    pixel = row_tile * ROWS + tl.arange(0, ROWS)
    # Rows beyond the frame read its last pixel and are not written; loads need no mask then.
    rows = tl.minimum(pixel, num_pixels - 1)
    columns = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    inner = tl.arange(0, INNER)
    x_tile = rows[:, None] * CHANNELS_IN + inner[None, :]
    weight_tile = inner[:, None] * CHANNELS_OUT + columns[None, :]
    # Pointers advance by 64-bit scalars and 32-bit tiles: tiles of 64 bits would not fit in the registers.
    first = (clip * frames_out + frame) * num_pixels * CHANNELS_OUT
    out_tile = pixel[:, None] * CHANNELS_OUT + columns[None, :]
    inside = (pixel < num_pixels)[:, None]
    total = tl.zeros([ROWS, COLUMNS], tl.float32) + tl.load(bias_ptr + columns)[None, :]
    blocks: tl.constexpr = CHANNELS_IN // INNER
    for step in range(3 * blocks):
        source = tl.maximum(frame * STRIDE - 2 + step // blocks, 0)
        start = (clip * frames_in + source) * num_pixels * CHANNELS_IN
        x = tl.load(x_ptr + start + (step % blocks) * INNER + x_tile)
        weight = tl.load(weight_ptr + step * INNER * CHANNELS_OUT + weight_tile)
        total = tl.dot(x, weight, total, input_precision="ieee")
    if HAS_RESIDUAL:
        total += tl.load(residual_ptr + first + out_tile, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + first + out_tile, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _softmax_in_place(scores_ptr, weights_ptr, scale, length, BLOCK: tl.constexpr):
    """Softmax of one row of float32 scores, written in half precision over the start of the same row."""
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK)
    inside = index < length
    scores = tl.load(scores_ptr + row * length + index, mask=inside, other=float("-inf")) * scale
    weights = tl.exp(scores - tl.max(scores, 0))
    weights = weights / tl.sum(weights, 0)
    # Every number of the row went into the sum, so all are read before the first is overwritten.
    tl.store(weights_ptr + 2 * row * length + index, weights.to(weights_ptr.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _causal_attention(
    projected_ptr, out_ptr, num_pixels, num_frames, scale, CHANNELS: tl.constexpr, FRAMES: tl.constexpr
):
    """Causal attention of one pixel over its frames; `projected` holds query, key and value side by side."""
    pixel = tl.program_id(0)
    clip = tl.program_id(1).to(tl.int64)
    frame = tl.arange(0, FRAMES)
    channel = tl.arange(0, CHANNELS)
    inside = (frame < num_frames)[:, None]
    place = (clip * num_frames + frame[:, None]) * num_pixels + pixel
    row = projected_ptr + place * (3 * CHANNELS) + channel[None, :]
    query = tl.load(row, mask=inside, other=0.0)
    key = tl.load(row + CHANNELS, mask=inside, other=0.0)
    value = tl.load(row + 2 * CHANNELS, mask=inside, other=0.0)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    scores = tl.where(frame[:, None] >= frame[None, :], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    total = tl.sum(weights, 1)[:, None]
    attended = tl.dot(weights.to(value.dtype), value, input_precision="ieee") / total
    tl.store(
        out_ptr + place * CHANNELS + channel[None, :], attended.to(out_ptr.dtype.element_ty), mask=inside
    )


def temporal_convolution(
    x: Float[Tensor, "N F P C"],
    weight: Float[Tensor, "3 C D"],
    bias: Float[Tensor, " D"],
    stride: int,
    residual: Float[Tensor, "N F2 P D"] | None,
    tile: Tile | None = None,
) -> Float[Tensor, "N F2 P D"]:
    """Causal three-tap convolution in time with its bias, plus `residual`; channels in multiples of 16."""
    x, residual = x.contiguous(), None if residual is None else residual.contiguous()
    num_clips, frames_in, num_pixels, channels_in = x.shape
    frames_out, channels_out = (frames_in - 1) // stride + 1, weight.shape[2]
    out = x.new_empty(num_clips, frames_out, num_pixels, channels_out)
    tile = tile or choose_tile(channels_in, channels_out, x.element_size(), _shared_memory(x.device))
    row_tiles = triton.cdiv(num_pixels, tile.rows)
    _temporal_convolution[(num_clips * frames_out * row_tiles * (channels_out // tile.columns),)](
        x,
        weight,
        bias,
        x if residual is None else residual,
        out,
        num_pixels,
        frames_in,
        frames_out,
        row_tiles,
        CHANNELS_IN=channels_in,
        CHANNELS_OUT=channels_out,
        STRIDE=stride,
        HAS_RESIDUAL=residual is not None,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        INNER=tile.inner,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


def choose_tile(channels_in: int, channels_out: int, element_size: int, shared_memory: int) -> Tile:
    """The tile for these sizes; the large one needs the shared memory of a data-centre card."""
    inner = next(size for size in (64, 32, 16) if channels_in % size == 0)
    columns = next(size for size in (256, 128, 64, 32, 16) if channels_out % size == 0)
    large = Tile(128, columns, inner, 8, 3)
    if _stage_bytes(large, element_size) * large.stages < 0.9 * shared_memory:
        return large
    return Tile(64, min(columns, 128), min(inner, 32), 4, 2)


def _stage_bytes(tile: Tile, element_size: int) -> int:
    return (tile.rows + tile.columns) * tile.inner * element_size


@cache
def _shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program may take; that of a small card where there is no GPU to ask."""
    if device.type != "cuda":
        return 99 * 1024
    index = torch.cuda.current_device() if device.index is None else device.index
    return triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]


def softmax_in_place(
    scores: Float[Tensor, "B Q K"], scale: float, dtype: torch.dtype
) -> Float[Tensor, "B Q K"]:
    """Softmax of `scale` times the float32 scores along the last axis in a 16-bit type, over their memory."""
    assert scores.dtype == torch.float32
    assert scores.is_contiguous()
    assert dtype.itemsize == 2
    batch, rows, length = scores.shape
    weights = scores.view(dtype)
    block = triton.next_power_of_2(length)
    _softmax_in_place[(batch * rows,)](
        scores, weights, scale, length, BLOCK=block, num_warps=min(max(block // 2048, 1), 16)
    )
    return weights[..., :length]


def can_attend_in_time(num_frames: int, channels: int) -> bool:
    """Whether `causal_attention` takes this size."""
    is_power = channels == triton.next_power_of_2(channels)
    return num_frames <= MAX_ATTENDED_FRAMES and is_power and 16 <= channels <= MAX_ATTENDED_CHANNELS


def causal_attention(projected: Float[Tensor, "N F P C3"]) -> Float[Tensor, "N F P C"]:
    """Causal attention of each pixel over its frames, one head; query, key and value lie side by side."""
    projected = projected.contiguous()
    num_clips, num_frames, num_pixels, channels = projected.shape
    channels //= 3
    out = projected.new_empty(num_clips, num_frames, num_pixels, channels)
    frames = max(triton.next_power_of_2(num_frames), 16)
    _causal_attention[(num_pixels, num_clips)](
        projected,
        out,
        num_pixels,
        num_frames,
        channels**-0.5,
        CHANNELS=channels,
        FRAMES=frames,
        num_warps=4 if frames == 16 else 8,
    )
    return out


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
