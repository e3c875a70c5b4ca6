"""The state scan of Mamba-2 without gradient, in Triton kernels for Hopper.

The scan is that of docs/reference/decoder.md, "Blocks": what `ssd.recurrent_states` computes, with softplus
and skip around it. The work is cut so that the state of a head stays in registers over a whole segment of the
sequence, and only its value before each chunk goes through memory, once, in the type of the tokens: chunk
states are never summed in memory.

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

from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


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


DTYPES = (torch.bfloat16, torch.float16)
"""Types of tokens that the kernels take on a GPU; sums and states are float32 with both."""


@dataclass(frozen=True)
class ScanTiles:
    """How the kernels cut their work; the result depends on it by rounding only."""

    chunk: int = 128
    """Tokens of a chunk: state traffic falls with it, work inside chunks grows."""
    block_rows: int = 128
    """Tokens for which one program makes results: the chunk or half of it."""
    read_heads: int = 16
    """Heads that one program reads out with the same products of read and write."""
    read_warps: int = 8
    """Warps of a program that reads out."""
    read_stages: int = 2
    """Heads in flight while one is read out."""
    num_segments: int = 8
    """Pieces of the sequence that are walked side by side; at most one per chunk is used."""
    walk_heads: int = 2
    """Heads whose states one program carries."""
    block_state: int = 256
    """State columns that one program carries."""
    block_tokens: int = 64
    """Tokens of one matrix product that updates states."""
    exact_updates: bool = True
    """Update states with faded tokens in twice the digits, for one more product: without, the error of a head
    that fades slowly is a tenth above that of mamba-ssm's kernels, which round where it averages out."""
    walk_warps: int = 8
    """Warps of a program that carries states."""
    walk_stages: int = 3
    """Blocks of tokens in flight while states are carried."""

    def __post_init__(self) -> None:
        if self.chunk not in (self.block_rows, 2 * self.block_rows) or self.block_rows % self.block_tokens:
            raise ValueError(
                "a chunk must be one or two blocks of rows and those whole blocks of tokens, found chunk "
                f"{self.chunk}, block_rows {self.block_rows}, block_tokens {self.block_tokens}: change one"
            )


HOPPER_TILES = ScanTiles()
"""For 16-bit tokens, 64 channels and 256 states on an H100 or H200."""


def ssd_forward(
    x: Float[Tensor, "B N H P"],
    step: Float[Tensor, "B N H"],
    write: Float[Tensor, "B N G S"],
    read: Float[Tensor, "B N G S"],
    decay: Float[Tensor, " H"],
    skip: Float[Tensor, " H"],
    step_bias: Float[Tensor, " H"],
    tiles: ScanTiles = HOPPER_TILES,
) -> Float[Tensor, "B N H P"]:
    """What the states read out plus the skipped input, in the dtype of `x`; contiguous, no gradient.

    `step` is raw: `step_bias` is added and softplus taken in float32. Equal to `mamba_chunk_scan_combined` of
    mamba-ssm with D, dt_bias and dt_softplus. `x`, `write` and `read` may be views into wider rows, as long
    as the heads (groups) of a token lie side by side. Sequences of a batch run one after the other.
    """
    check_inputs(x, step, write, read)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        for item in range(x.shape[0] if x.shape[1] else 0):
            sequence = (x[item], step[item], write[item], read[item])
            _scan_sequence(*sequence, decay, skip, step_bias, tiles, y[item])
    return y


def check_inputs(x: Tensor, step: Tensor, write: Tensor, read: Tensor) -> None:
    """ValueError for what the kernels cannot read; float32 is for Triton's interpreter alone."""
    if not x.is_cuda and isinstance(read_out, triton.JITFunction):
        raise ValueError(f"the kernels need CUDA tensors, found {x.device}: take lyra_ns.ops.ssd there")
    dtypes = DTYPES if x.is_cuda else (*DTYPES, torch.float32)
    if x.dtype not in dtypes or {write.dtype, read.dtype} != {x.dtype}:
        found = ", ".join(str(tensor.dtype) for tensor in (x, write, read))
        raise ValueError(f"x, write and read must share one of {dtypes}, found {found}: convert them")
    if x.shape[2] % write.shape[2]:
        raise ValueError(
            f"heads must be a multiple of groups, found {x.shape[2]} heads and {write.shape[2]} groups: "
            "check the number of groups"
        )
    for name, tensor in (("x", x), ("write", write), ("read", read)):
        if tensor.stride(3) != 1 or (tensor.shape[2] > 1 and tensor.stride(2) != tensor.shape[3]):
            raise ValueError(
                f"rows of {name} must lie side by side, found strides {tensor.stride()}: make it contiguous"
            )
        if tensor.data_ptr() % 16 or tensor.stride(1) * tensor.element_size() % 16:
            raise ValueError(
                f"the tokens of {name} must start at multiples of 16 bytes, found strides {tensor.stride()} "
                f"of {tensor.dtype}: make it contiguous"
            )


def _scan_sequence(
    x: Tensor,
    step: Tensor,
    write: Tensor,
    read: Tensor,
    decay: Tensor,
    skip: Tensor,
    step_bias: Tensor,
    tiles: ScanTiles,
    y: Tensor,
) -> None:
    """Fill `y` [N, H, P] for one sequence."""
    elapsed, length, left = accumulate(step, step_bias, decay, tiles)
    before, since_start, last_state, last_faded = walk(x, write, elapsed, left, tiles)
    at_start = join(last_state, last_faded, x.dtype)
    read_states(x, write, read, before, at_start, elapsed, length, left, since_start, skip, tiles, y)


def accumulate(
    step: Tensor, step_bias: Tensor, decay: Tensor, tiles: ScanTiles
) -> tuple[Tensor, Tensor, Tensor]:
    """`elapsed`, `length` and `left` of every head and token, float32 [H, N rounded up to chunks]."""
    num_tokens, num_heads = step.shape
    num_chunks = triton.cdiv(num_tokens, tiles.chunk)
    elapsed = step.new_empty(num_heads, num_chunks * tiles.chunk, dtype=torch.float32)
    length, left = torch.empty_like(elapsed), torch.empty_like(elapsed)
    heads = min(8, triton.next_power_of_2(num_heads))
    accumulate_steps[(elapsed.shape[1] // tiles.block_rows, triton.cdiv(num_heads, heads))](
        step,
        step_bias,
        decay,
        elapsed,
        length,
        left,
        num_tokens,
        elapsed.shape[1],
        step.stride(0),
        step.stride(1),
        NUM_HEADS=num_heads,
        BLOCK_ROWS=tiles.block_rows,
        HEADS=heads,
        num_warps=4,
    )
    return elapsed, length, left


def walk(
    x: Tensor, write: Tensor, elapsed: Tensor, left: Tensor, tiles: ScanTiles, is_reversed: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States before every chunk and at the end of every segment, both from zero at its start.

    Before: [chunk, H, P, S] in the dtype of `x` and the logarithm of how far the start of the segment has
    faded, [chunk, H]. At the end: [segment, H, P, S] and [segment, H], float32. `is_reversed` walks from the
    last chunk to the first, with chunks of one block and `left` seen from the start of each.
    """
    num_heads, channels = x.shape[1:]
    num_groups, state = write.shape[1:]
    num_chunks = elapsed.shape[1] // tiles.chunk
    chunks_per_segment = chunks_per_segment_of(num_chunks, tiles)
    num_segments = triton.cdiv(num_chunks, chunks_per_segment)
    heads = gcd(tiles.walk_heads, num_heads // num_groups)
    block_state = min(tiles.block_state, state)
    before = x.new_empty(num_chunks, num_heads, channels, state)
    since_start = elapsed.new_empty(num_chunks, num_heads)
    last_state = elapsed.new_empty(num_segments, num_heads, channels, state)
    last_faded = elapsed.new_empty(num_segments, num_heads)
    walk_segments[(num_heads // heads * (state // block_state), num_segments)](
        tiles_of(x.flatten(1), tiles.block_tokens, heads * channels),
        tiles_of(write.flatten(1), tiles.block_tokens, block_state),
        tiles_of(before.flatten(0, 2), heads * channels, block_state),
        elapsed,
        left,
        since_start,
        last_state,
        last_faded,
        num_chunks,
        chunks_per_segment,
        elapsed.shape[1],
        NUM_HEADS=num_heads,
        HEADS_PER_GROUP=num_heads // num_groups,
        CHANNELS=channels,
        STATE=state,
        CHUNK=tiles.chunk,
        BLOCK_ROWS=tiles.block_rows,
        HEADS=heads,
        BLOCK_STATE=block_state,
        BLOCK_TOKENS=tiles.block_tokens,
        EXACT=tiles.exact_updates,
        REVERSED=is_reversed,
        STAGES=tiles.walk_stages,
        num_warps=tiles.walk_warps,
    )
    return before, since_start, last_state, last_faded


def join(last_state: Tensor, last_faded: Tensor, dtype: torch.dtype) -> Tensor:
    """The state at the start of every segment, [segment, H, P, S] in `dtype`."""
    at_start = torch.empty_like(last_state, dtype=dtype)
    num_segments, num_heads = last_faded.shape
    elements = last_state[0, 0].numel()
    block = min(1024, elements)
    join_segments[(elements // block, num_heads)](
        last_state,
        last_faded,
        at_start,
        num_segments,
        NUM_HEADS=num_heads,
        ELEMENTS=elements,
        BLOCK=block,
        num_warps=4,
    )
    return at_start


def read_states(
    x: Tensor,
    write: Tensor,
    read: Tensor,
    before: Tensor,
    at_start: Tensor,
    elapsed: Tensor,
    length: Tensor,
    left: Tensor,
    since_start: Tensor,
    skip: Tensor,
    tiles: ScanTiles,
    y: Tensor,
) -> None:
    """Fill `y` [N, H, P] from the states and from the tokens of the same chunk."""
    num_heads, channels = x.shape[1:]
    num_groups, state = write.shape[1:]
    num_chunks, rows = before.shape[0], tiles.block_rows
    heads = gcd(tiles.read_heads, num_heads // num_groups)
    read_out[(num_chunks * (tiles.chunk // rows), num_heads // heads)](
        tiles_of(x.flatten(1), rows, channels),
        tiles_of(write.flatten(1), rows, state),
        tiles_of(read.flatten(1), rows, state),
        tiles_of(before.flatten(0, 2), channels, state),
        tiles_of(at_start.flatten(0, 2), channels, state),
        tiles_of(y.flatten(1), rows, channels),
        elapsed,
        length,
        left,
        since_start,
        skip,
        chunks_per_segment_of(num_chunks, tiles),
        elapsed.shape[1],
        NUM_HEADS=num_heads,
        HEADS_PER_GROUP=num_heads // num_groups,
        HEADS=heads,
        CHANNELS=channels,
        STATE=state,
        CHUNK=tiles.chunk,
        BLOCK_ROWS=rows,
        STAGES=tiles.read_stages,
        num_warps=tiles.read_warps,
    )


def chunks_per_segment_of(num_chunks: int, tiles: ScanTiles) -> int:
    """Chunks of every segment but the last, which may be shorter."""
    return triton.cdiv(num_chunks, min(tiles.num_segments, num_chunks))


def tiles_of(rows: Tensor, *block: int) -> Any:
    """Descriptor of a matrix for the copy engine."""
    return TensorDescriptor.from_tensor(rows, list(block))
