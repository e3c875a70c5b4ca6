"""The kernels behind ssd_triton_backward.py: what tokens hold, and how fast the states fade.

Token i reads y_i = sum over j <= i of P_ij length_j x_j, where P_ij = (read_i . write_j) fade_ij. With g for
the gradient of y, the gradient of a state is a scan like the forward one, from the last token to the first,
in which g is written by `read`: walked by `walk_segments`. What is left is local to a chunk:

- `written_gradients`: the gradient of x, from the chunk and from behind it.
- `product_gradients`: what pairs of tokens say about read, write and the fading between them.
- `sum_over_heads`: the gradients of read and write, which all heads of a group share.

The last two also sum M_ij = P_ij length_j x_j . g_i. The gradient of the logarithm a_t = length_t decay by
which the state fades at token t is the sum of M_ij over all pairs j < t <= i. Of a chunk these are pairs
inside it, pairs with one token outside and pairs with both outside; each sum is formed by itself, since
differences of sums over whole sequences would drown what a head that fades fast has to say. The kernels above
give the first two kinds by token; then follow

- `meet`: what tokens before a chunk and tokens behind it say about the fading across it.
- `step_gradients`: from all this the gradients of steps, decays and biases.

Shape letters and notation as in ssd_triton.py; chunks are one block of tokens.
"""

# Kernels take pointers, numbers and constants that no type describes.
# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from lyra_ns.ops.ssd_triton import HOPPER_TILES, ScanTiles


@dataclass(frozen=True)
class BackwardTiles:
    """How the kernels cut their work; the result depends on it by rounding only."""

    walk: ScanTiles = HOPPER_TILES
    """The walks along states and their gradients; chunks of one block."""
    written_warps: int = 8
    """Warps of a program that computes gradients of x."""
    written_stages: int = 2
    """Heads in flight there."""
    product_warps: int = 4
    """Warps of a program that takes a quarter of the pairs of a chunk."""
    product_stages: int = 3
    """Heads in flight there."""
    sum_state: int = 128
    """State columns for which one program sums over heads."""
    sum_warps: int = 8
    """Warps of that program."""
    sum_stages: int = 3
    """Heads in flight there."""

    def __post_init__(self) -> None:
        if self.walk.chunk != self.walk.block_rows:
            raise ValueError(
                f"a chunk must be one block of rows, found chunk {self.walk.chunk} and block_rows "
                f"{self.walk.block_rows}: change one"
            )


HOPPER_BACKWARD_TILES = BackwardTiles()
"""For 16-bit tokens, 64 channels and 256 states on an H100 or H200."""


@triton.jit(do_not_specialize=["num_chunks", "chunks_per_segment"])
def written_gradients(
    x_tiles,
    grad_tiles,
    write_tiles,
    read_tiles,
    behind_tiles,
    at_end_tiles,
    grad_x_tiles,
    elapsed,
    length,
    since_end,
    skip,
    of_length,
    of_skip,
    num_chunks,
    chunks_per_segment,
    padded_tokens,
    NUM_HEADS: tl.constexpr,
    HEADS_PER_GROUP: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATE: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The gradient of x in one chunk, for all heads of a group: `read_out` with the roles exchanged.

    Writes with it `of_length` [H, tokens], the gradient of lengths without what fading says, and `of_skip`
    [chunk, H].
    """
    chunk, group = tl.program_id(0), tl.program_id(1)
    segment = (num_chunks - 1 - chunk) // chunks_per_segment
    start = chunk * CHUNK
    tokens = tl.arange(0, CHUNK)
    write = write_tiles.load([start, group * STATE])
    product = tl.dot(write, tl.trans(read_tiles.load([start, group * STATE])))
    product = tl.where(tokens[None, :] >= tokens[:, None], product, 0.0)
    for index in tl.range(0, HEADS_PER_GROUP, num_stages=STAGES):
        head = group * HEADS_PER_GROUP + index
        place = head * padded_tokens + start
        since = tl.load(elapsed + place + tokens)
        of_token = tl.load(length + place + tokens)
        end = tl.load(elapsed + place + CHUNK - 1)
        behind = behind_tiles.load([(chunk * NUM_HEADS + head) * CHANNELS, 0])
        grad = grad_tiles.load([start, head * CHANNELS])
        # Of what a token adds to its state: from behind the chunk, then from the chunk.
        of_added = tl.zeros((CHUNK, CHANNELS), tl.float32)
        kept = tl.exp2(tl.load(since_end + chunk * NUM_HEADS + head))
        if kept > 0:
            at_end = at_end_tiles.load([(segment * NUM_HEADS + head) * CHANNELS, 0])
            of_added = kept * tl.dot(write, tl.trans(at_end))
        of_added = tl.dot(write, tl.trans(behind), of_added)
        of_added *= tl.exp2(end - since)[:, None]
        fade = tl.exp2(tl.minimum(since[None, :] - since[:, None], 0.0))
        weights = product * fade
        of_added = tl.dot(weights.to(grad.dtype), grad, of_added)
        x = x_tiles.load([start, head * CHANNELS]).to(tl.float32)
        tl.store(of_length + place + tokens, tl.sum(x * of_added, 1))
        tl.store(of_skip + chunk * NUM_HEADS + head, tl.sum(tl.sum(x * grad, 1), 0))
        grad_x = of_token[:, None] * of_added + tl.load(skip + head).to(tl.float32) * grad
        grad_x_tiles.store([start, head * CHANNELS], grad_x.to(grad_x_tiles.dtype))


@triton.jit
def product_gradients(
    x_tiles,
    grad_tiles,
    write_tiles,
    read_tiles,
    result_tiles,
    elapsed,
    length,
    of_written,
    of_read,
    padded_tokens,
    NUM_HEADS: tl.constexpr,
    HEADS_PER_GROUP: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The gradient of write_j . read_i for half of a chunk's written tokens and half of its reading ones.

    Writes one quarter of `result_tiles` [chunk G j, i], summed over the heads of a group, and for every head
    the sums of M over its rows, `of_written` [half of i, H, tokens], and over its columns, `of_read` [half of
    j, H, tokens]. The first half reads nothing of what the second writes: three programs for each chunk.
    """
    chunk, group = tl.program_id(0) // 3, tl.program_id(1)
    row_half = tl.program_id(0) % 3 // 2
    column_half = (tl.program_id(0) % 3 + 1) // 2
    rows = row_half * BLOCK + tl.arange(0, BLOCK)
    columns = column_half * BLOCK + tl.arange(0, BLOCK)
    start = chunk * CHUNK
    write = write_tiles.load([start + row_half * BLOCK, group * STATE])
    read = read_tiles.load([start + column_half * BLOCK, group * STATE])
    product = tl.dot(write, tl.trans(read))
    # A token fades by nothing until it reads itself, and what it reads then would drown fast heads' sums.
    product = tl.where(columns[None, :] > rows[:, None], product, 0.0)
    of_product = tl.zeros((BLOCK, BLOCK), tl.float32)
    for index in tl.range(0, HEADS_PER_GROUP, num_stages=STAGES):
        head = group * HEADS_PER_GROUP + index
        place = head * padded_tokens + start
        row_since = tl.load(elapsed + place + rows)
        row_length = tl.load(length + place + rows)
        column_since = tl.load(elapsed + place + columns)
        x = x_tiles.load([start + row_half * BLOCK, head * CHANNELS])
        grad = grad_tiles.load([start + column_half * BLOCK, head * CHANNELS])
        fade = tl.exp2(tl.minimum(column_since[None, :] - row_since[:, None], 0.0))
        met = tl.dot(x, tl.trans(grad)) * fade * row_length[:, None]
        of_product += met
        met *= product
        layer = NUM_HEADS * padded_tokens
        tl.store(of_written + column_half * layer + place + rows, tl.sum(met, 1))
        tl.store(of_read + row_half * layer + place + columns, tl.sum(met, 0))
    of_product = tl.where(columns[None, :] >= rows[:, None], of_product, 0.0)
    line = (chunk * tl.num_programs(1) + group) * CHUNK + row_half * BLOCK
    result_tiles.store([line, column_half * BLOCK], of_product.to(result_tiles.dtype))


@triton.jit(do_not_specialize=["num_chunks", "chunks_per_segment"])
def sum_over_heads(
    row_tiles,
    state_tiles,
    start_tiles,
    own_tiles,
    other_tiles,
    product_tiles,
    result_tiles,
    weight,
    since_start,
    across,
    num_chunks,
    chunks_per_segment,
    padded_tokens,
    NUM_HEADS: tl.constexpr,
    HEADS_PER_GROUP: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATE: tl.constexpr,
    BLOCK_STATE: tl.constexpr,
    CHUNK: tl.constexpr,
    OF_READ: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The gradient of `read` or of `write` in BLOCK_STATE columns of one group and chunk.

    Of `read` the rows are gradients of y and the states those before the chunk; of `write` they are x and the
    gradients of the states behind it. `weight` says how far each token sees, or is seen from, that border of
    the chunk. Writes for each head and token `across` [state block, H, tokens], its sum of M over the tokens
    of other chunks.
    """
    state_blocks: tl.constexpr = STATE // BLOCK_STATE
    chunk = tl.program_id(0)
    group = tl.program_id(1) // state_blocks
    block = tl.program_id(1) % state_blocks
    segment = chunk // chunks_per_segment if OF_READ else (num_chunks - 1 - chunk) // chunks_per_segment
    start = chunk * CHUNK
    tokens = tl.arange(0, CHUNK)
    column = group * STATE + block * BLOCK_STATE
    own = own_tiles.load([start, column])
    sums = tl.zeros((CHUNK, BLOCK_STATE), tl.float32)
    before = tl.zeros((CHUNK,), tl.float32)
    for index in tl.range(0, HEADS_PER_GROUP, num_stages=STAGES):
        head = group * HEADS_PER_GROUP + index
        row_weight = tl.load(weight + head * padded_tokens + start + tokens)
        rows = row_tiles.load([start, head * CHANNELS]).to(tl.float32) * row_weight[:, None]
        state = state_tiles.load([(chunk * NUM_HEADS + head) * CHANNELS, block * BLOCK_STATE])
        kept = tl.exp2(tl.load(since_start + chunk * NUM_HEADS + head))
        if kept > 0:
            at_start = start_tiles.load([(segment * NUM_HEADS + head) * CHANNELS, block * BLOCK_STATE])
            sums = tl.dot((rows * kept).to(state.dtype), at_start, sums)
        sums = tl.dot(rows.to(state.dtype), state, sums)
        # A head's share is the growth of what the sum of all heads so far says.
        so_far = tl.sum(sums * own.to(tl.float32), 1)
        place = (block * NUM_HEADS + head) * padded_tokens + start
        tl.store(across + place + tokens, so_far - before)
        before = so_far
    product = product_tiles.load([(chunk * (NUM_HEADS // HEADS_PER_GROUP) + group) * CHUNK, 0])
    if OF_READ:
        product = tl.trans(product)
    sums = tl.dot(product, other_tiles.load([start, column]), sums)
    result_tiles.store([start, column], sums.to(result_tiles.dtype))


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
