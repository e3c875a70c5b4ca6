"""The depthwise convolution before both directions of a Mamba-2 scan, as one kernel without flipped copies.

Projected tokens [gate I | x I | write S | read S | step H] are read once. Each direction has its own taps;
the second runs backwards through the sequence, so that its taps look ahead and its results are stored in the
order of its scan, the last token first. Behind the convolution follows SiLU; the step is only copied.

The kernels walk one token after the other with a window in registers: a warp holds some channels of one token
and goes through the sequence. The newest K inputs are the ones of direction 0 at the newest token and those
of direction 1, whose taps look ahead, at the oldest: one window serves both, everything is read once, and
nothing is computed twice but in the first K - 1 steps of a program. Tiles of tokens that read their
neighbours' tokens again took twice as long with the backward pass on an H200. `newest` is the position of the
newest token of the window.

Shape letters: B batch, N tokens, I inner channels of one direction, S state size, H heads of one direction, K
taps. The first axis of weights, and the axis of size two of results, is the direction. Inside the kernels
everything is float32; gradients of the weights are sums over fixed blocks of tokens, the same in every run.
"""

# Tuples grow in loops, which no type describes.
# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment,unreachable,var-annotated"

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from lyra_ns.ops.ssd_types import DirectedTokens

STEP_TOKENS = tl.constexpr(8)
"""Tokens whose steps are copied at once."""


@triton.jit
def _region(block, x, write, read, INNER: tl.constexpr, STATE: tl.constexpr, CHANNEL_BLOCK: tl.constexpr):
    """The tensor of a block of channels: pointer, row size, channels in the weights and in it, mask."""
    INNER_BLOCKS: tl.constexpr = (INNER + CHANNEL_BLOCK - 1) // CHANNEL_BLOCK
    STATE_BLOCKS: tl.constexpr = (STATE + CHANNEL_BLOCK - 1) // CHANNEL_BLOCK
    if block < INNER_BLOCKS:
        pointer, size, first, place = x, INNER, 0, block
    elif block < INNER_BLOCKS + STATE_BLOCKS:
        pointer, size, first, place = write, STATE, INNER, block - INNER_BLOCKS
    else:
        pointer, size, first, place = read, STATE, INNER + STATE, block - INNER_BLOCKS - STATE_BLOCKS
    if INNER % 16 == 0 and STATE % 16 == 0:
        # Lost where the branches meet, and needed for wide loads and stores.
        size, first = tl.multiple_of(size, 16), tl.multiple_of(first, 16)
    within = place * CHANNEL_BLOCK + tl.arange(0, CHANNEL_BLOCK)
    return pointer, size, first + within, within, within < size


@triton.jit
def _load_taps(weight, bias, direction, channel, mask, TAPS: tl.constexpr, ALL: tl.constexpr):
    """The taps of one direction and at the end its bias, each [channels] in float32."""
    taps = ()
    for tap in tl.static_range(TAPS):
        value = tl.load(weight + (direction * TAPS + tap) * ALL + channel, mask=mask, other=0.0)
        taps = taps + (value.to(tl.float32),)  # noqa: RUF005
    value = tl.load(bias + direction * ALL + channel, mask=mask, other=0.0)
    return taps + (value.to(tl.float32),)  # noqa: RUF005


@triton.jit
def _load_row(rows, token, num_tokens, WIDTH: tl.constexpr, channel, mask):
    """Channels of one token as they are, zero outside the sequence."""
    inside = mask & (token >= 0) & (token < num_tokens)
    return tl.load(rows + tl.cast(token, tl.int64) * WIDTH + channel, mask=inside, other=0.0)


@triton.jit
def _load_first_window(
    projected, begin, num_tokens, channel, wanted, TAPS: tl.constexpr, WIDTH: tl.constexpr
):
    """The window before the token `begin`: something that falls out at once, and K - 1 tokens."""
    window = ()
    for place in tl.static_range(TAPS):
        row = _load_row(projected, begin - TAPS + place, num_tokens, WIDTH, channel, wanted)
        window = window + (row.to(tl.float32),)  # noqa: RUF005
    return window


@triton.jit
def _convolved(window, taps, REVERSED: tl.constexpr, TAPS: tl.constexpr):
    """One token's result of one direction before the SiLU."""
    total = taps[TAPS]
    for tap in tl.static_range(TAPS):
        total += window[TAPS - 1 - tap if REVERSED else tap] * taps[tap]
    return total


@triton.jit
def convolution_kernel(
    projected, weight, bias, x, step, write, read, num_tokens,
    INNER: tl.constexpr, STATE: tl.constexpr, HEADS: tl.constexpr, TAPS: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr, HEAD_BLOCK: tl.constexpr, TOKENS: tl.constexpr, STRIDE: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
):  # fmt: skip
    """One block of channels of x, write or read for TOKENS tokens, in both directions; STRIDE at once."""
    ALL: tl.constexpr = INNER + 2 * STATE
    WIDTH: tl.constexpr = INNER + ALL + HEADS
    block = tl.program_id(0) % NUM_BLOCKS
    sequence = tl.program_id(1).to(tl.int64) * num_tokens
    projected += sequence * WIDTH + INNER
    out, size, channel, within, wanted = _region(block, x, write, read, INNER, STATE, CHANNEL_BLOCK)
    taps_ahead = _load_taps(weight, bias, 0, channel, wanted, TAPS, ALL)
    taps_back = _load_taps(weight, bias, 1, channel, wanted, TAPS, ALL)
    begin = tl.program_id(0) // NUM_BLOCKS * TOKENS
    end = tl.minimum(begin + TOKENS, num_tokens)
    window = _load_first_window(projected, begin, num_tokens, channel, wanted, TAPS, WIDTH)
    out_ahead = out + sequence * 2 * size + within
    out_back = out + ((sequence + num_tokens - 1) * 2 + 1) * size + within
    for start in range(begin, end + TAPS - 1, STRIDE):
        rows = ()
        for ahead in tl.static_range(STRIDE):
            row = _load_row(projected, start + ahead, num_tokens, WIDTH, channel, wanted)
            rows = rows + (row,)  # noqa: RUF005
        for ahead in tl.static_range(STRIDE):
            window = window[1:] + (rows[ahead].to(tl.float32),)  # noqa: RUF005
            newest = start + ahead
            value = _convolved(window, taps_ahead, False, TAPS)
            place = out_ahead + tl.cast(newest, tl.int64) * (2 * size)
            tl.store(place, value * tl.sigmoid(value), mask=wanted & (newest < end))
            oldest = newest - TAPS + 1
            value = _convolved(window, taps_back, True, TAPS)
            place = out_back - tl.cast(oldest, tl.int64) * (2 * size)
            tl.store(place, value * tl.sigmoid(value), mask=wanted & (oldest >= begin) & (oldest < end))
    if block == 0:
        _copy_steps(projected + ALL, step, sequence, begin, num_tokens, HEADS, WIDTH, HEAD_BLOCK, TOKENS)


@triton.jit
def _copy_steps(
    steps, step, sequence, begin, num_tokens,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, HEAD_BLOCK: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """The steps of TOKENS tokens in both orders."""
    head = tl.arange(0, HEAD_BLOCK)[None, :]
    for start in range(begin, tl.minimum(begin + TOKENS, num_tokens), STEP_TOKENS):
        token = start + tl.arange(0, STEP_TOKENS)[:, None]
        mask = (token < num_tokens) & (head < HEADS)
        value = tl.load(steps + token.to(tl.int64) * WIDTH + head, mask=mask)
        tl.store(step + (sequence + token) * (2 * HEADS) + head, value, mask=mask)
        tl.store(step + ((sequence + num_tokens - 1 - token) * 2 + 1) * HEADS + head, value, mask=mask)


@triton.jit
def _through_silu(grad, before):
    """Gradient before the SiLU."""
    share = tl.sigmoid(before)
    return grad.to(tl.float32) * share * (1 + before * (1 - share))


@triton.jit
def _add_to_parts(parts, window, grad, REVERSED: tl.constexpr, TAPS: tl.constexpr):
    """Sums of the gradients of the taps and at the end of the bias, one token further."""
    total = ()
    for tap in tl.static_range(TAPS):
        part = parts[tap] + grad * window[TAPS - 1 - tap if REVERSED else tap]
        total = total + (part,)  # noqa: RUF005
    return total + (parts[TAPS] + grad,)  # noqa: RUF005


@triton.jit
def _nothing(COUNT: tl.constexpr, CHANNEL_BLOCK: tl.constexpr):
    """That many zeros for each channel."""
    zeros = ()
    for _ in tl.static_range(COUNT):
        zeros = zeros + (tl.zeros((CHANNEL_BLOCK,), tl.float32),)  # noqa: RUF005
    return zeros


@triton.jit
def convolution_backward_kernel(
    projected, weight, bias, grad_x, grad_step, grad_write, grad_read, grad_projected, parts, num_tokens,
    INNER: tl.constexpr, STATE: tl.constexpr, HEADS: tl.constexpr, TAPS: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr, HEAD_BLOCK: tl.constexpr, TOKENS: tl.constexpr, STRIDE: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
):  # fmt: skip
    """Gradients of one block of channels for TOKENS tokens; `parts` holds those of taps and bias.

    At every step the gradients before the SiLU of direction 0 at the newest token and of direction 1 at the
    oldest one join those of the last steps: the input of the oldest token has met all of them.
    """
    ALL: tl.constexpr = INNER + 2 * STATE
    WIDTH: tl.constexpr = INNER + ALL + HEADS
    block = tl.program_id(0) % NUM_BLOCKS
    sequence = tl.program_id(1).to(tl.int64) * num_tokens
    projected += sequence * WIDTH + INNER
    grad_projected += sequence * WIDTH + INNER
    grad_out, size, channel, within, wanted = _region(
        block, grad_x, grad_write, grad_read, INNER, STATE, CHANNEL_BLOCK
    )
    taps_ahead = _load_taps(weight, bias, 0, channel, wanted, TAPS, ALL)
    taps_back = _load_taps(weight, bias, 1, channel, wanted, TAPS, ALL)
    begin = tl.program_id(0) // NUM_BLOCKS * TOKENS
    end = tl.minimum(begin + TOKENS, num_tokens)
    window = _load_first_window(projected, begin, num_tokens, channel, wanted, TAPS, WIDTH)
    grads_ahead, grads_back = _nothing(TAPS, CHANNEL_BLOCK), _nothing(TAPS, CHANNEL_BLOCK)
    parts_ahead, parts_back = _nothing(TAPS + 1, CHANNEL_BLOCK), _nothing(TAPS + 1, CHANNEL_BLOCK)
    from_ahead = grad_out + sequence * 2 * size + within
    from_back = grad_out + ((sequence + num_tokens - 1) * 2 + 1) * size + within
    for start in range(begin, end + TAPS - 1, STRIDE):
        rows = ()
        for ahead in tl.static_range(STRIDE):
            newest = start + ahead
            oldest = newest - TAPS + 1
            row = _load_row(projected, newest, num_tokens, WIDTH, channel, wanted)
            place = from_ahead + tl.cast(newest, tl.int64) * (2 * size)
            of_newest = tl.load(place, mask=wanted & (newest < num_tokens), other=0.0)
            place = from_back - tl.cast(oldest, tl.int64) * (2 * size)
            inside = wanted & (oldest >= 0) & (oldest < num_tokens)
            rows = rows + ((row, of_newest, tl.load(place, mask=inside, other=0.0)),)  # noqa: RUF005
        for ahead in tl.static_range(STRIDE):
            newest = start + ahead
            oldest = newest - TAPS + 1
            row, of_newest, of_oldest = rows[ahead]
            window = window[1:] + (row.to(tl.float32),)  # noqa: RUF005
            of_newest = _through_silu(of_newest, _convolved(window, taps_ahead, False, TAPS))
            of_oldest = _through_silu(of_oldest, _convolved(window, taps_back, True, TAPS))
            grads_ahead = grads_ahead[1:] + (of_newest,)  # noqa: RUF005
            grads_back = grads_back[1:] + (of_oldest,)  # noqa: RUF005
            # A neighbouring program adds up what lies outside of [begin, end).
            is_own = (oldest >= begin) & (oldest < end)
            parts_back = _add_to_parts(parts_back, window, tl.where(is_own, of_oldest, 0.0), True, TAPS)
            of_newest = tl.where(newest < end, of_newest, 0.0)
            parts_ahead = _add_to_parts(parts_ahead, window, of_newest, False, TAPS)
            total = tl.zeros((CHANNEL_BLOCK,), tl.float32)
            for tap in tl.static_range(TAPS):
                total += grads_ahead[TAPS - 1 - tap] * taps_ahead[tap] + grads_back[tap] * taps_back[tap]
            place = grad_projected + tl.cast(oldest, tl.int64) * WIDTH + channel
            tl.store(place, total, mask=wanted & is_own)
    if block == 0:
        _join_steps(
            grad_step, grad_projected + ALL, sequence, begin, num_tokens, HEADS, WIDTH, HEAD_BLOCK, TOKENS
        )
    num_parts = tl.num_programs(0) // NUM_BLOCKS
    part = (tl.program_id(1) * num_parts + tl.program_id(0) // NUM_BLOCKS).to(tl.int64) * 2
    for tap in tl.static_range(TAPS + 1):
        tl.store(parts + (part * (TAPS + 1) + tap) * ALL + channel, parts_ahead[tap], mask=wanted)
        tl.store(parts + ((part + 1) * (TAPS + 1) + tap) * ALL + channel, parts_back[tap], mask=wanted)


@triton.jit
def _join_steps(
    grad_step, grad_steps, sequence, begin, num_tokens,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, HEAD_BLOCK: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """The gradients of the steps of TOKENS tokens, which both directions have read."""
    head = tl.arange(0, HEAD_BLOCK)[None, :]
    for start in range(begin, tl.minimum(begin + TOKENS, num_tokens), STEP_TOKENS):
        token = start + tl.arange(0, STEP_TOKENS)[:, None]
        mask = (token < num_tokens) & (head < HEADS)
        ahead = tl.load(grad_step + (sequence + token) * (2 * HEADS) + head, mask, 0.0)
        back = tl.load(grad_step + ((sequence + num_tokens - 1 - token) * 2 + 1) * HEADS + head, mask, 0.0)
        total = ahead.to(tl.float32) + back.to(tl.float32)
        tl.store(grad_steps + token.to(tl.int64) * WIDTH + head, total, mask=mask)


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
