"""The state scan of Mamba-2 without gradient, in Triton kernels for Hopper.

The scan is that of docs/reference/decoder.md, "Blocks": what `ssd_states.recurrent_states` computes, with
softplus and skip around it. The work is cut so that the state of a head stays in registers over a whole
segment of the sequence, and only its value before each chunk goes through memory, once, in the type of the
tokens: chunk states are never summed in memory. The kernels and their notation are in ssd_forward_kernels.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
import triton
from jaxtyping import Float
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from lyra_ns.kernels.ssd_forward_kernels import accumulate_steps, join_segments, read_out, walk_segments

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
        raise ValueError(f"the kernels need CUDA tensors, found {x.device}: take lyra_ns.ssd_states there")
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
