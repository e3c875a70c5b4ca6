"""The kernels behind `ssd_backward.ssd_backward` for what steps and decays say: how fast the states fade.

The gradient of the logarithm a_t = length_t decay by which the state fades at token t is the sum of
M_ij = P_ij length_j x_j . g_i over all pairs j < t <= i. Of a chunk these are pairs inside it, pairs with one
token outside and pairs with both outside; each sum is formed by itself, since differences of sums over
whole sequences would drown what a head that fades fast has to say. The kernels of ssd_backward_kernels.py
give the first two kinds by token.

- `meet`: what tokens before a chunk and tokens behind it say about the fading across it.
- `step_gradients`: from all this the gradients of steps, decays and biases.

Notation as there.
"""

# Kernels take pointers, numbers and constants that no type describes.
# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_chunks", "chunks_per_segment"])
def meet(
    before,
    at_start,
    since_start,
    behind,
    at_end,
    since_end,
    elapsed,
    met,
    num_chunks,
    chunks_per_segment,
    padded_tokens,
    NUM_HEADS: tl.constexpr,
    ELEMENTS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write `met` [H, chunk]: the state before a chunk, faded across it, times the gradient behind it."""
    chunk, head = tl.program_id(0), tl.program_id(1)
    segment = chunk // chunks_per_segment
    segment_behind = (num_chunks - 1 - chunk) // chunks_per_segment
    kept = tl.exp2(tl.load(since_start + chunk * NUM_HEADS + head))
    kept_behind = tl.exp2(tl.load(since_end + chunk * NUM_HEADS + head))
    place = (chunk * NUM_HEADS + head).to(tl.int64) * ELEMENTS
    start_place = (segment * NUM_HEADS + head).to(tl.int64) * ELEMENTS
    end_place = (segment_behind * NUM_HEADS + head).to(tl.int64) * ELEMENTS
    products = tl.zeros((BLOCK,), tl.float32)
    for first in tl.range(0, ELEMENTS, BLOCK):
        here = first + tl.arange(0, BLOCK)
        state = tl.load(before + place + here).to(tl.float32)
        if kept > 0:
            state += kept * tl.load(at_start + start_place + here).to(tl.float32)
        gradient = tl.load(behind + place + here).to(tl.float32)
        if kept_behind > 0:
            gradient += kept_behind * tl.load(at_end + end_place + here).to(tl.float32)
        products += state * gradient
    across = tl.exp2(tl.load(elapsed + head * padded_tokens + chunk * CHUNK + CHUNK - 1))
    tl.store(met + head * num_chunks + chunk, across * tl.sum(products, 0))


@triton.jit(do_not_specialize=["num_tokens", "num_chunks"])
def step_gradients(
    step,
    step_bias,
    decay,
    length,
    met,
    of_length,
    of_written,
    of_read,
    read_across,
    written_across,
    grad_step,
    grad_decay,
    grad_bias,
    num_tokens,
    num_chunks,
    padded_tokens,
    stride_token,
    stride_head,
    NUM_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    CHUNK: tl.constexpr,
    STATE_BLOCKS: tl.constexpr,
):
    """Gradients of the raw steps [N, H], and one chunk's of decays and biases [chunk, H]."""
    chunk = tl.program_id(0)
    tokens = chunk * CHUNK + tl.arange(0, CHUNK)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    is_head = (heads < NUM_HEADS)[:, None]
    is_token = is_head & (tokens < num_tokens)[None, :]
    places = heads[:, None] * padded_tokens + tokens[None, :]
    layer = NUM_HEADS * padded_tokens
    within = tl.zeros((HEADS, CHUNK), tl.float32)
    for half in tl.static_range(2):
        within += tl.load(of_written + half * layer + places, is_head, 0.0)
        within -= tl.load(of_read + half * layer + places, is_head, 0.0)
    from_earlier = tl.zeros((HEADS, CHUNK), tl.float32)
    by_later = tl.zeros((HEADS, CHUNK), tl.float32)
    for block in tl.static_range(STATE_BLOCKS):
        from_earlier += tl.load(read_across + block * layer + places, is_head, 0.0)
        by_later += tl.load(written_across + block * layer + places, is_head, 0.0)
    # Pairs j < t <= i: a written token counts for all behind it, a reading one for itself and all before it.
    of_fading = tl.cumsum(within, 1) - within + tl.cumsum(by_later, 1) - by_later
    of_fading += tl.cumsum(from_earlier, 1, reverse=True)
    of_fading += tl.load(met + heads * num_chunks + chunk, heads < NUM_HEADS, 0.0)[:, None]
    rate = tl.load(decay + heads, heads < NUM_HEADS, 0.0).to(tl.float32)[:, None]
    of_step = tl.load(of_length + places, is_head, 0.0) + rate * of_fading
    offsets = tokens.to(tl.int64)[None, :] * stride_token + heads[:, None] * stride_head
    raw = tl.load(step + offsets, is_token, 0.0).to(tl.float32)
    raw += tl.load(step_bias + heads, heads < NUM_HEADS, 0.0).to(tl.float32)[:, None]
    of_raw = tl.where(is_token, of_step * tl.sigmoid(raw), 0.0)
    row = tokens.to(tl.int64)[None, :] * NUM_HEADS + heads[:, None]
    tl.store(grad_step + row, of_raw.to(grad_step.dtype.element_ty), is_token)
    of_decay = tl.where(is_token, tl.load(length + places, is_head, 0.0) * of_fading, 0.0)
    tl.store(grad_decay + chunk * NUM_HEADS + heads, tl.sum(of_decay, 1), heads < NUM_HEADS)
    tl.store(grad_bias + chunk * NUM_HEADS + heads, tl.sum(of_raw, 1), heads < NUM_HEADS)
