"""The Triton kernels of convolution.py, which walk one token after the other with a window in registers.

A warp holds some channels of one token and goes through the sequence. The newest K inputs are the ones of
direction 0 at the newest token and those of direction 1, whose taps look ahead, at the oldest: one window
serves both, everything is read once, and nothing is computed twice but in the first K - 1 steps of a program.
Tiles of tokens that read their neighbours' tokens again took twice as long with the backward pass on an H200.

Shape letters as in convolution.py; `newest` is the position of the newest token of the window.
"""

# Tuples grow in loops, which no type describes.
# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment,unreachable,var-annotated"
from __future__ import annotations

import triton
import triton.language as tl

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
