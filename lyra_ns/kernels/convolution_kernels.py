"""The Triton kernels of convolution.py.

One warp holds a tile of tokens and channels and walks along the tokens, so that what neighbouring tiles read
twice is still in the cache and sums over tokens stay inside the warp. `ahead` is direction 0, `back`
direction 1, whose taps look at later tokens and whose outputs lie in reversed order.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"
from __future__ import annotations

import triton
import triton.language as tl


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
    within = place * CHANNEL_BLOCK + tl.arange(0, CHANNEL_BLOCK)[None, :]
    return pointer, size, first + within, within, within < size


@triton.jit
def _load_taps(weight, bias, direction, channel, mask, TAPS: tl.constexpr, ALL: tl.constexpr):
    """The taps of one direction and at the end its bias, each [1, channels] in float32."""
    taps = ()
    for tap in tl.static_range(TAPS):
        value = tl.load(weight + (direction * TAPS + tap) * ALL + channel, mask=mask, other=0.0)
        taps = taps + (value.to(tl.float32),)  # noqa: RUF005
    value = tl.load(bias + direction * ALL + channel, mask=mask, other=0.0)
    return taps + (value.to(tl.float32),)  # noqa: RUF005


@triton.jit
def _load_projected(projected, start, row, channel, mask, num_tokens, WIDTH: tl.constexpr):
    """Channels of the tokens from `start` on in float32, zero outside the sequence."""
    token = start + row
    mask = mask & (token >= 0) & (token < num_tokens)
    pointers = projected + tl.cast(start, tl.int64) * WIDTH + (row * WIDTH + channel)
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def convolution_kernel(
    projected, weight, bias, x, step, write, read, num_tokens,
    INNER: tl.constexpr, STATE: tl.constexpr, HEADS: tl.constexpr, TAPS: tl.constexpr,
    TOKEN_BLOCK: tl.constexpr, CHANNEL_BLOCK: tl.constexpr, HEAD_BLOCK: tl.constexpr,
    TOKENS: tl.constexpr, NUM_BLOCKS: tl.constexpr,
):  # fmt: skip
    """One block of channels of x, write or read for TOKENS tokens, in both directions."""
    ALL: tl.constexpr = INNER + 2 * STATE
    WIDTH: tl.constexpr = INNER + ALL + HEADS
    block = tl.program_id(0) % NUM_BLOCKS
    sequence = tl.program_id(1).to(tl.int64) * num_tokens
    projected += sequence * WIDTH + INNER
    row = tl.arange(0, TOKEN_BLOCK)[:, None]
    out, size, channel, within, wanted = _region(block, x, write, read, INNER, STATE, CHANNEL_BLOCK)
    taps_ahead = _load_taps(weight, bias, 0, channel, wanted, TAPS, ALL)
    taps_back = _load_taps(weight, bias, 1, channel, wanted, TAPS, ALL)
    begin = tl.program_id(0) // NUM_BLOCKS * TOKENS
    for start in range(begin, tl.minimum(begin + TOKENS, num_tokens), TOKEN_BLOCK):
        ahead = tl.zeros((TOKEN_BLOCK, CHANNEL_BLOCK), tl.float32) + taps_ahead[TAPS]
        back = tl.zeros((TOKEN_BLOCK, CHANNEL_BLOCK), tl.float32) + taps_back[TAPS]
        for shift in tl.static_range(2 * TAPS - 1):
            tile = _load_projected(
                projected, start + (shift - TAPS + 1), row, channel, wanted, num_tokens, WIDTH
            )
            if shift < TAPS:
                ahead += tile * taps_ahead[shift]
            if shift >= TAPS - 1:
                back += tile * taps_back[2 * TAPS - 2 - shift]
        inside = start + row < num_tokens
        first_row = (sequence + start) * 2
        last_row = (sequence + num_tokens - 1 - start) * 2 + 1
        offset = row * (2 * size)
        tl.store(out + first_row * size + (within + offset), ahead * tl.sigmoid(ahead), mask=inside & wanted)
        tl.store(out + last_row * size + (within - offset), back * tl.sigmoid(back), mask=inside & wanted)
        if block == 0:
            head = tl.arange(0, HEAD_BLOCK)[None, :]
            is_step = inside & (head < HEADS)
            steps = projected + ALL + tl.cast(start, tl.int64) * WIDTH + (row * WIDTH + head)
            value = tl.load(steps, mask=is_step)
            tl.store(step + first_row * HEADS + (head + row * (2 * HEADS)), value, mask=is_step)
            tl.store(step + last_row * HEADS + (head - row * (2 * HEADS)), value, mask=is_step)


@triton.jit
def _through_silu(grad, before):
    """Gradient before the SiLU."""
    share = tl.sigmoid(before)
    return grad.to(tl.float32) * share * (1 + before * (1 - share))


@triton.jit
def _grad_of_taps(
    grad, projected, oldest, row, channel, wanted, num_tokens,
    REVERSED: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """This tile's gradient of the taps, one in each row, and of the bias in the row behind them."""
    tap_row = tl.arange(0, ROWS)[:, None]
    total = tl.where(tap_row == TAPS, tl.sum(grad, 0)[None, :], 0.0)
    for tap in tl.static_range(TAPS):
        tile = _load_projected(projected, oldest + tap, row, channel, wanted, num_tokens, WIDTH)
        target = TAPS - 1 - tap if REVERSED else tap
        total += tl.where(tap_row == target, tl.sum(grad * tile, 0)[None, :], 0.0)
    return total


@triton.jit
def convolution_backward_kernel(
    projected, weight, bias, grad_x, grad_step, grad_write, grad_read, grad_projected, parts, num_tokens,
    INNER: tl.constexpr, STATE: tl.constexpr, HEADS: tl.constexpr, TAPS: tl.constexpr,
    TOKEN_BLOCK: tl.constexpr, CHANNEL_BLOCK: tl.constexpr, HEAD_BLOCK: tl.constexpr,
    TOKENS: tl.constexpr, NUM_BLOCKS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Gradients of one block of channels for TOKENS tokens; `parts` holds those of taps and bias."""
    ALL: tl.constexpr = INNER + 2 * STATE
    WIDTH: tl.constexpr = INNER + ALL + HEADS
    block = tl.program_id(0) % NUM_BLOCKS
    sequence = tl.program_id(1).to(tl.int64) * num_tokens
    projected += sequence * WIDTH + INNER
    grad_projected += sequence * WIDTH + INNER
    row = tl.arange(0, TOKEN_BLOCK)[:, None]
    grad_out, size, channel, within, wanted = _region(
        block, grad_x, grad_write, grad_read, INNER, STATE, CHANNEL_BLOCK
    )
    taps_ahead = _load_taps(weight, bias, 0, channel, wanted, TAPS, ALL)
    taps_back = _load_taps(weight, bias, 1, channel, wanted, TAPS, ALL)
    part_ahead = tl.zeros((ROWS, CHANNEL_BLOCK), tl.float32)
    part_back = tl.zeros((ROWS, CHANNEL_BLOCK), tl.float32)
    begin = tl.program_id(0) // NUM_BLOCKS * TOKENS
    for start in range(begin, tl.minimum(begin + TOKENS, num_tokens), TOKEN_BLOCK):
        grad_input = tl.zeros((TOKEN_BLOCK, CHANNEL_BLOCK), tl.float32)
        for shift in tl.static_range(TAPS):
            # The output of `ahead` at these tokens + shift and that of `back` at + shift - TAPS + 1 = oldest
            # come from the same inputs, and both meet the inputs of these tokens.
            oldest = start + (shift - TAPS + 1)
            ahead = tl.zeros((TOKEN_BLOCK, CHANNEL_BLOCK), tl.float32) + taps_ahead[TAPS]
            back = tl.zeros((TOKEN_BLOCK, CHANNEL_BLOCK), tl.float32) + taps_back[TAPS]
            for tap in tl.static_range(TAPS):
                tile = _load_projected(projected, oldest + tap, row, channel, wanted, num_tokens, WIDTH)
                ahead += tile * taps_ahead[tap]
                back += tile * taps_back[TAPS - 1 - tap]
            mask = wanted & (start + shift + row < num_tokens)
            grad = tl.load(
                grad_out + (sequence + start + shift) * 2 * size + (within + row * (2 * size)), mask, 0.0
            )
            ahead = _through_silu(grad, ahead)
            mask = wanted & (oldest + row >= 0) & (oldest + row < num_tokens)
            last_row = (sequence + num_tokens - 1 - oldest) * 2 + 1
            grad = tl.load(grad_out + last_row * size + (within - row * (2 * size)), mask, 0.0)
            back = _through_silu(grad, back)
            grad_input += ahead * taps_ahead[TAPS - 1 - shift] + back * taps_back[shift]
            if shift == 0:
                part_ahead += _grad_of_taps(
                    ahead, projected, oldest, row, channel, wanted, num_tokens, False, TAPS, ROWS, WIDTH
                )
            if shift == TAPS - 1:
                part_back += _grad_of_taps(
                    back, projected, oldest, row, channel, wanted, num_tokens, True, TAPS, ROWS, WIDTH
                )
        inside = start + row < num_tokens
        target = grad_projected + tl.cast(start, tl.int64) * WIDTH
        tl.store(target + (row * WIDTH + channel), grad_input, mask=inside & wanted)
        if block == 0:
            first_row, last_row = (sequence + start) * 2, (sequence + num_tokens - 1 - start) * 2 + 1
            head = tl.arange(0, HEAD_BLOCK)[None, :]
            is_step = inside & (head < HEADS)
            ahead_step = tl.load(grad_step + first_row * HEADS + (head + row * (2 * HEADS)), is_step, 0.0)
            back_step = tl.load(grad_step + last_row * HEADS + (head - row * (2 * HEADS)), is_step, 0.0)
            value = ahead_step.to(tl.float32) + back_step.to(tl.float32)
            tl.store(target + ALL + (row * WIDTH + head), value, mask=is_step)
    tap_row = tl.arange(0, ROWS)[:, None]
    mask = wanted & (tap_row < TAPS + 1)
    num_parts = tl.num_programs(0) // NUM_BLOCKS
    part = (tl.program_id(1) * num_parts + tl.program_id(0) // NUM_BLOCKS).to(tl.int64) * 2
    tl.store(parts + part * (TAPS + 1) * ALL + (tap_row * ALL + channel), part_ahead, mask=mask)
    tl.store(parts + (part + 1) * (TAPS + 1) * ALL + (tap_row * ALL + channel), part_back, mask=mask)
