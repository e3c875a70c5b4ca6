"""The Triton kernels behind ops/attention_triton.py: one tile of queries, and how far keys lie from a centre.

Scores and shifts are in powers of two. A tile is a block of queries of one head of one scene. Descriptors
have the axes scene, token and channel of all heads.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"
from __future__ import annotations

import math

import triton
import triton.language as tl

HEADROOM = tl.constexpr(60.0)
"""Powers of two that weights may rise above one: sums of 2^19 of them stay far from the largest float32."""

LEAST_SUM = tl.constexpr(2.0**-80)
"""Weights under 2^-126 vanish. A sum this large has lost less than 2^-126 2^19 / 2^-80 = 2^-27 of itself."""

_LN_2 = tl.constexpr(math.log(2))


@triton.jit
def _exp2_by_polynomial(x):
    """2^x for x <= 127 without the special function unit; relative error under 2^-13, far inside bfloat16."""
    x = tl.maximum(x, -126.0)
    # Adding 1.5 2^23 rounds to a whole number, which then stands in the low bits.
    shifted = x + 12582912.0
    fraction = x - (shifted - 12582912.0)
    # Least relative error over [-1/2, 1/2].
    value = ((0.05517172 * fraction + 0.24261135) * fraction + 0.693261) * fraction + 0.99992806
    bits = value.to(tl.int32, bitcast=True) + (shifted.to(tl.int32, bitcast=True) << 23)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _exp2(x, columns, QUARTERS: tl.constexpr):
    """2^x, some columns of which by the polynomial: both units work at once.

    Which columns a thread holds is known to the compiler modulo 32 in groups of 8: no branch is left.
    """
    if QUARTERS == 0:
        return tl.exp2(x)
    else:
        by_polynomial = (columns // 8) % 4 < QUARTERS
        return tl.where(by_polynomial[None, :], _exp2_by_polynomial(x), tl.exp2(x))


@triton.jit
def _take_keys(
    state,
    query,
    scale,
    keys,
    values,
    scene,
    row,
    column,
    num_left,
    BLOCK_KEYS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SUM_COLUMNS: tl.constexpr,
    QUARTERS: tl.constexpr,
    RUNNING_MAXIMUM: tl.constexpr,
    HAS_REST: tl.constexpr,
):
    """(weighted values, sums of weights, shift) after the keys from `row` on, of which `num_left` count.

    With one sum column the weights are added up as they are. With more the tensor cores do it, against ones:
    the columns are equal, and rounding the largest weight changes its share in no row that it dominates.
    """
    weighted, total, shift = state
    columns = tl.arange(0, BLOCK_KEYS)
    key = keys.load([scene, row, column]).reshape(BLOCK_KEYS, HEAD_DIM)
    value = values.load([scene, row, column]).reshape(BLOCK_KEYS, HEAD_DIM)
    scores = tl.dot(query, key.T) * scale
    if HAS_REST:  # noqa: SIM102 (decided when compiling)
        # The copy engine reads zeros behind the last token of a scene. A step of its own for them would hold
        # products of its own, which the compiler then no longer overlaps in either place.
        if num_left < BLOCK_KEYS:
            scores = tl.where((columns < num_left)[None, :], scores, -float("inf"))
    if RUNNING_MAXIMUM:
        highest = tl.maximum(shift, tl.max(scores, 1))
        fade = tl.exp2(shift - highest)
        weighted, total, shift = weighted * fade[:, None], total * fade[:, None], highest
    weights = _exp2(scores - shift[:, None], columns, QUARTERS)
    rounded = weights.to(value.dtype)
    if SUM_COLUMNS == 1:
        total += tl.sum(weights, 1, keep_dims=True)
    else:
        ones = tl.full([BLOCK_KEYS, SUM_COLUMNS], 1.0, tl.float32).to(value.dtype)
        total = tl.dot(rounded, ones, total)
    return tl.dot(rounded, value, weighted), total, shift


@triton.jit
def attend_tile_kernel(
    queries,
    keys,
    values,
    score_scale,
    key_centre,
    key_radius,
    out,
    logsumexp,
    marked,
    num_tokens,
    num_heads,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SUM_COLUMNS: tl.constexpr,
    QUARTERS: tl.constexpr,
    RUNNING_MAXIMUM: tl.constexpr,
    HAS_REST: tl.constexpr,
    QUERY_IN_REGISTERS: tl.constexpr,
):
    """Attention of one tile over all keys; with RUNNING_MAXIMUM only of tiles that the bound has failed."""
    tile, head, scene = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pair = scene * num_heads + head
    mark = marked + pair * tl.num_programs(0) + tile
    if RUNNING_MAXIMUM:  # noqa: SIM102 (decided when compiling)
        if tl.load(mark) == 0:
            return
    column = head * HEAD_DIM
    rows = tile * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    dims = tl.arange(0, HEAD_DIM)
    inside = rows < num_tokens
    query = queries.load([scene, tile * BLOCK_QUERIES, column]).reshape(BLOCK_QUERIES, HEAD_DIM)
    scale = tl.load(score_scale + pair)
    if RUNNING_MAXIMUM:
        shift = tl.full([BLOCK_QUERIES], -float("inf"), tl.float32)
    else:
        wide = query.to(tl.float32)
        centre = tl.load(key_centre + pair * HEAD_DIM + dims)
        bound = tl.sqrt(tl.sum(wide * wide, 1)) * tl.load(key_radius + pair)
        bound += tl.sum(wide * centre[None, :], 1)
        # Whole numbers, so that a bound that differs in its last bits gives the same weights.
        shift = tl.ceil(bound * scale) - HEADROOM
    if QUERY_IN_REGISTERS:
        # A product of a loaded tile would read it from shared memory in every step, a computed one lies in
        # registers; an eighth is exact in bfloat16.
        query, scale = (query.to(tl.float32) * 0.125).to(query.dtype), scale * 8.0
    total = tl.zeros([BLOCK_QUERIES, SUM_COLUMNS], tl.float32)
    state = (tl.zeros([BLOCK_QUERIES, HEAD_DIM], tl.float32), total, shift)
    for start in range(0, num_tokens, BLOCK_KEYS):
        state = _take_keys(
            state, query, scale, keys, values, scene, start, column, num_tokens - start,
            BLOCK_KEYS, HEAD_DIM, SUM_COLUMNS, QUARTERS, RUNNING_MAXIMUM, HAS_REST,
        )  # fmt: skip
    weighted, total, shift = state
    total = tl.max(total, 1)  # all columns are equal
    if not RUNNING_MAXIMUM:
        # Written so that NaN fails, too.
        sound = (total >= LEAST_SUM) & (total < float("inf")) & (tl.max(tl.abs(weighted), 1) < float("inf"))
        tl.store(mark, tl.max((inside & (sound == 0)).to(tl.int32), 0))
    tl.store(logsumexp + pair.to(tl.int64) * num_tokens + rows, (shift + tl.log2(total)) * _LN_2, mask=inside)
    row_start = (scene * num_tokens + rows).to(tl.int64) * (num_heads * HEAD_DIM) + column
    mixed = (weighted / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + row_start[:, None] + dims[None, :], mixed, mask=inside[:, None])


@triton.jit
def largest_distances_kernel(
    key,
    centre,
    distances,
    num_tokens,
    num_heads,
    scene_stride,
    token_stride,
    head_stride,
    BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Largest squared distance of the keys of one block from the centre of their head."""
    block, head, scene = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pair = scene * num_heads + head
    rows = block * BLOCK + tl.arange(0, BLOCK)
    dims = tl.arange(0, HEAD_DIM)
    inside = (rows < num_tokens)[:, None]
    start = key + scene.to(tl.int64) * scene_stride + head * head_stride
    keys = tl.load(start + rows.to(tl.int64)[:, None] * token_stride + dims[None, :], mask=inside, other=0.0)
    offset = tl.where(inside, keys.to(tl.float32) - tl.load(centre + pair * HEAD_DIM + dims)[None, :], 0.0)
    tl.store(distances + pair * tl.num_programs(0) + block, tl.max(tl.sum(offset * offset, 1), 0))
