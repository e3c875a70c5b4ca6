"""The four kernels behind `ssd_forward.ssd_forward`, in the order in which they run.

Tokens are cut into blocks (`BLOCK_ROWS`), one or two blocks make a chunk (`CHUNK`), chunks make segments.
`accumulate_steps` prepares what only depends on the steps, `walk_segments` carries the state through one
segment per program and leaves the state before every chunk, `join_segments` carries states from segment to
segment, `read_out` makes the results.

`length` is the step after softplus. `elapsed` is the sum of length times decay from the start of a block up
to a token and with it, a logarithm to base 2, so that token i sees exp2(elapsed_i - elapsed_j) length_j of
token j in its block. `left` is what the end of its block sees of a token. Exponents are sums of non-positive
terms, or cut at zero where they do not count, so nothing overflows however fast a state fades.

Shape letters as in ssd.py; tensors named `*_tiles` are TMA descriptors, whose loads give zero past the last
token and whose stores stop there. Numbers of tokens, chunks and segments are not specialised, so that one
compilation serves sequences of every length.
"""

# Kernels take pointers, numbers and constants that no type describes.
# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def softplus(raw):
    """log(1 + exp(raw)) without loss of small results."""
    small = tl.exp(-tl.abs(raw))
    shifted = 1 + small
    # log(1 + small) with the rounding of the sum undone (Kahan).
    exact = shifted - 1
    tail = tl.where(exact == 0, small, tl.log(shifted) * (small / tl.where(exact == 0, 1, exact)))
    return tl.maximum(raw, 0) + tail


@triton.jit(do_not_specialize=["num_tokens"])
def accumulate_steps(
    step,
    step_bias,
    decay,
    elapsed,
    length,
    left,
    num_tokens,
    padded_tokens,
    stride_token,
    stride_head,
    NUM_HEADS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Write `elapsed`, `length` and `left` [H, padded tokens] of one block; zero length past the end."""
    rows = tl.arange(0, BLOCK_ROWS)
    tokens = tl.program_id(0) * BLOCK_ROWS + rows
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    is_head = heads < NUM_HEADS
    is_token = (tokens < num_tokens)[:, None] & is_head[None, :]
    offsets = tokens.to(tl.int64)[:, None] * stride_token + heads[None, :] * stride_head
    raw = tl.load(step + offsets, is_token, 0.0).to(tl.float32)
    raw += tl.load(step_bias + heads, is_head, 0.0).to(tl.float32)[None, :]
    of_token = tl.where(is_token, softplus(raw), 0.0)
    rate = tl.load(decay + heads, is_head, 0.0).to(tl.float32) * 1.4426950408889634
    faded = tl.cumsum(of_token * rate[None, :], 0)
    places = heads[None, :] * padded_tokens + tokens[:, None]
    tl.store(elapsed + places, faded, is_head[None, :])
    tl.store(length + places, of_token, is_head[None, :])
    until_end = tl.sum(tl.where((rows == BLOCK_ROWS - 1)[:, None], faded, 0.0), 0)[None, :] - faded
    tl.store(left + places, of_token * tl.exp2(until_end), is_head[None, :])


@triton.jit(do_not_specialize=["num_chunks", "chunks_per_segment"])
def walk_segments(
    x_tiles,
    write_tiles,
    before_tiles,
    elapsed,
    left,
    since_start,
    last_state,
    last_faded,
    num_chunks,
    chunks_per_segment,
    padded_tokens,
    NUM_HEADS: tl.constexpr,
    HEADS_PER_GROUP: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_STATE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    EXACT: tl.constexpr,
    REVERSED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Carry the states of HEADS heads through one segment, from zero, in float32 accumulators.

    Writes the state before every chunk (`before_tiles` [chunk H P, S]), how much a state from the start of
    the segment has faded by then (`since_start` [chunk, H]), and both at the end of the segment
    (`last_state` [segment H P, S], `last_faded` [segment, H]). EXACT adds a second product with what the
    faded tokens lose when they are rounded to the type of the tokens. REVERSED walks from the last chunk to
    the first: "before" a chunk is then behind it, and `left` what the start of its block sees of a token.
    """
    state_blocks: tl.constexpr = STATE // BLOCK_STATE
    steps_per_chunk: tl.constexpr = CHUNK // BLOCK_TOKENS
    first_head = tl.program_id(0) // state_blocks * HEADS
    first_state = tl.program_id(0) % state_blocks * BLOCK_STATE
    segment = tl.program_id(1)
    first_chunk = segment * chunks_per_segment
    end_chunk = tl.minimum(first_chunk + chunks_per_segment, num_chunks)
    rows = tl.arange(0, HEADS * CHANNELS)
    row_heads = first_head + rows // CHANNELS
    write_column = first_head // HEADS_PER_GROUP * STATE + first_state
    tokens = tl.arange(0, BLOCK_TOKENS)

    state = tl.zeros((HEADS * CHANNELS, BLOCK_STATE), tl.float32)
    faded = tl.zeros((HEADS * CHANNELS,), tl.float32)
    for block in tl.range(first_chunk * steps_per_chunk, end_chunk * steps_per_chunk, num_stages=STAGES):
        chunk = block // steps_per_chunk
        if REVERSED:
            chunk = num_chunks - 1 - chunk
        first_token = chunk * CHUNK + block % steps_per_chunk * BLOCK_TOKENS
        last_token = chunk * CHUNK + CHUNK - 1
        if block % steps_per_chunk == 0:
            before_tiles.store(
                [(chunk * NUM_HEADS + first_head) * CHANNELS, first_state], state.to(before_tiles.dtype)
            )
            tl.store(since_start + chunk * NUM_HEADS + row_heads, faded)
            of_chunk = tl.load(elapsed + row_heads * padded_tokens + last_token)
            if CHUNK != BLOCK_ROWS:
                of_chunk += tl.load(elapsed + row_heads * padded_tokens + last_token - BLOCK_ROWS)
            state *= tl.exp2(of_chunk)[:, None]
            faded += of_chunk
        x = x_tiles.load([first_token, first_head * CHANNELS])
        write = write_tiles.load([first_token, write_column])
        # What the end of the chunk sees of every row's tokens; a second block fades the first.
        is_earlier = block % steps_per_chunk < steps_per_chunk - BLOCK_ROWS // BLOCK_TOKENS
        of_row = tl.zeros((HEADS * CHANNELS, BLOCK_TOKENS), tl.float32)
        for index in tl.static_range(HEADS):
            head_start = (first_head + index) * padded_tokens
            of_head = tl.load(left + head_start + first_token + tokens)
            if CHUNK != BLOCK_ROWS:
                until_end = tl.load(elapsed + head_start + last_token)
                of_head *= tl.where(is_earlier, tl.exp2(until_end), 1.0)
            of_row = tl.where((rows // CHANNELS == index)[:, None], of_head[None, :], of_row)
        faded_x = tl.trans(x).to(tl.float32) * of_row
        rounded_x = faded_x.to(x.dtype)
        state = tl.dot(rounded_x, write, state)
        if EXACT:
            rest = (faded_x - rounded_x).to(x.dtype)
            state = tl.dot(rest, write, state)

    places = (segment * NUM_HEADS + first_head) * CHANNELS + rows
    columns = first_state + tl.arange(0, BLOCK_STATE)
    tl.store(last_state + places.to(tl.int64)[:, None] * STATE + columns[None, :], state)
    tl.store(last_faded + segment * NUM_HEADS + row_heads, faded)


@triton.jit(do_not_specialize=["num_segments"])
def join_segments(
    last_state,
    last_faded,
    at_start,
    num_segments,
    NUM_HEADS: tl.constexpr,
    ELEMENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the state at the start of every segment, `at_start` [segment H P, S], from their ends."""
    head = tl.program_id(1)
    elements = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    state = tl.zeros((BLOCK,), tl.float32)
    for segment in tl.range(0, num_segments, num_stages=4):
        places = (segment * NUM_HEADS + head).to(tl.int64) * ELEMENTS + elements
        tl.store(at_start + places, state.to(at_start.dtype.element_ty))
        kept = tl.exp2(tl.load(last_faded + segment * NUM_HEADS + head))
        state = state * kept + tl.load(last_state + places)


@triton.jit
def read_out_tile(
    x_tiles,
    write_tiles,
    read_tiles,
    before_tiles,
    at_start_tiles,
    y_tiles,
    elapsed,
    length,
    left,
    since_start,
    skip,
    chunk,
    segment,
    group,
    first_head,
    padded_tokens,
    NUM_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    HAS_EARLIER: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Results of BLOCK_ROWS tokens, the first of their chunk or (HAS_EARLIER) those after as many others."""
    chunk_start = chunk * CHUNK
    start = chunk_start + BLOCK_ROWS if HAS_EARLIER else chunk_start
    rows = tl.arange(0, BLOCK_ROWS)
    read = read_tiles.load([start, group * STATE])
    write = write_tiles.load([start, group * STATE])
    product = tl.dot(read, tl.trans(write))
    product = tl.where(rows[:, None] >= rows[None, :], product, 0.0)
    if HAS_EARLIER:
        earlier_write = write_tiles.load([chunk_start, group * STATE])
        earlier_product = tl.dot(read, tl.trans(earlier_write))

    for head in tl.range(first_head, first_head + HEADS, num_stages=STAGES):
        row_elapsed = tl.load(elapsed + head * padded_tokens + start + rows)
        row_length = tl.load(length + head * padded_tokens + start + rows)
        before = before_tiles.load([(chunk * NUM_HEADS + head) * CHANNELS, 0])
        x = x_tiles.load([start, head * CHANNELS])
        y = tl.zeros((BLOCK_ROWS, CHANNELS), tl.float32)
        kept = tl.exp2(tl.load(since_start + chunk * NUM_HEADS + head))
        # Heads that fade fast have lost the start of their segment to the last bit; slow ones read it, too.
        if kept > 0:
            at_start = at_start_tiles.load([(segment * NUM_HEADS + head) * CHANNELS, 0])
            y = kept * tl.dot(read, tl.trans(at_start))
        y = tl.dot(read, tl.trans(before), y)
        if HAS_EARLIER:
            # Decay from an earlier block splits at the border: one factor per column and one per row, and
            # only the block on the diagonal needs one exponential per pair of tokens.
            border = tl.load(elapsed + head * padded_tokens + start - 1)
            earlier_left = tl.load(left + head * padded_tokens + chunk_start + rows)
            earlier_x = x_tiles.load([chunk_start, head * CHANNELS])
            weights = earlier_product * earlier_left[None, :]
            y *= tl.exp2(border)
            y = tl.dot(weights.to(x.dtype), earlier_x, y)
        y *= tl.exp2(row_elapsed)[:, None]
        seen = tl.exp2(tl.minimum(row_elapsed[:, None] - row_elapsed[None, :], 0.0)) * row_length[None, :]
        weights = product * seen
        y = tl.dot(weights.to(x.dtype), x, y)
        y += tl.load(skip + head).to(tl.float32) * x
        y_tiles.store([start, head * CHANNELS], y.to(y_tiles.dtype))


@triton.jit(do_not_specialize=["chunks_per_segment"])
def read_out(
    x_tiles,
    write_tiles,
    read_tiles,
    before_tiles,
    at_start_tiles,
    y_tiles,
    elapsed,
    length,
    left,
    since_start,
    skip,
    chunks_per_segment,
    padded_tokens,
    NUM_HEADS: tl.constexpr,
    HEADS_PER_GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Results of HEADS heads for BLOCK_ROWS tokens; a chunk has one or two such blocks."""
    blocks_per_chunk: tl.constexpr = CHUNK // BLOCK_ROWS
    chunk = tl.program_id(0) // blocks_per_chunk
    first_head = tl.program_id(1) * HEADS
    group = first_head // HEADS_PER_GROUP
    segment = chunk // chunks_per_segment
    if tl.program_id(0) % blocks_per_chunk == 0:
        read_out_tile(
            x_tiles, write_tiles, read_tiles, before_tiles, at_start_tiles, y_tiles, elapsed, length, left,
            since_start, skip, chunk, segment, group, first_head, padded_tokens, NUM_HEADS, HEADS, CHANNELS,
            STATE, CHUNK, BLOCK_ROWS, False, STAGES,
        )  # fmt: skip
    elif blocks_per_chunk == 2:
        read_out_tile(
            x_tiles, write_tiles, read_tiles, before_tiles, at_start_tiles, y_tiles, elapsed, length, left,
            since_start, skip, chunk, segment, group, first_head, padded_tokens, NUM_HEADS, HEADS, CHANNELS,
            STATE, CHUNK, BLOCK_ROWS, True, STAGES,
        )  # fmt: skip
