"""Attention by a Gluon kernel in which tensor cores never wait for exponentials.

The same bound in place of a running maximum, the same marks for queries that it fails and the same results as
the kernel of attention_triton.py, which calls this one and computes marked queries again.

A program holds three groups of four warps with 64 queries each, and one more part that only copies keys and
values into a ring of slots in shared memory. Each group waits for its scores and overlaps the product of the
last weights with the values; the exponentials of one group overlap with the products of the others. Two
groups that also multiply their next scores ahead are slower: the copies serve fewer queries. So is a share of
the exponentials by polynomial, which pays where a kernel waits for them (attention_kernels.py): here every
instruction more costs, on an H200 six hundredths for an eighth of them.

Gluon and not Triton, whose compiler waits for every product before the first use of anything after it. Scores
and shifts are in powers of two, as in attention_kernels.py.

Shape letters: B scenes, N tokens, H heads, D channels of a head, M groups of ROWS queries.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"

from __future__ import annotations

import math

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from lyra_ns.ops.attention_kernels import HEADROOM, LEAST_SUM

LANES = gl.constexpr(8)
"""Columns of a tile whose weights each thread sums on its own: additions between threads come once, last."""
GROUPS = gl.constexpr(3)
"""Groups of queries of a program."""

_LN_2 = gl.constexpr(math.log(2))


@gluon.jit
def _copy_tiles(
    keys, values, key_slots, value_slots, key_ready, value_ready, key_free, value_free, column, num_tiles
):
    """Copy all tiles of keys and values, as slots become free; keys of a tile before values of the last."""
    NUM_SLOTS: gl.constexpr = key_slots.type.shape[0]
    KEYS: gl.constexpr = key_slots.type.shape[1]
    for tile in range(num_tiles + 1):
        if tile < num_tiles:
            slot = tile % NUM_SLOTS
            mbarrier.wait(key_free.index(slot), (tile // NUM_SLOTS & 1) ^ 1)
            mbarrier.expect(key_ready.index(slot), keys.block_type.nbytes)
            tma.async_copy_global_to_shared(
                keys, [tile * KEYS, column], key_ready.index(slot), key_slots.index(slot)
            )
        if tile > 0:
            before = tile - 1
            slot = before % NUM_SLOTS
            mbarrier.wait(value_free.index(slot), (before // NUM_SLOTS & 1) ^ 1)
            mbarrier.expect(value_ready.index(slot), values.block_type.nbytes)
            tma.async_copy_global_to_shared(
                values, [before * KEYS, column], value_ready.index(slot), value_slots.index(slot)
            )


@gluon.jit
def _shifts(query_slot, scale, centre, radius, column, LAYOUT: gl.constexpr):
    """What is subtracted from the scores of each query: their bound, less the headroom."""
    DIM: gl.constexpr = query_slot.type.shape[1]
    wide_layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    query = query_slot.load(wide_layout).to(gl.float32)
    middle = gl.load(centre + column + gl.arange(0, DIM, gl.SliceLayout(0, wide_layout)))
    bound = gl.sqrt(gl.sum(query * query, 1)) * radius + gl.sum(query * middle[None, :], 1)
    # Whole numbers, so that a bound that differs in its last bits gives the same weights.
    return gl.convert_layout(gl.ceil(bound * scale) - HEADROOM, LAYOUT)


@gluon.jit
def _start_scores(query, key_slots, key_ready, tile, LAYOUT: gl.constexpr):
    """Start the product of the queries with the keys of a tile."""
    NUM_SLOTS: gl.constexpr = key_slots.type.shape[0]
    KEYS: gl.constexpr = key_slots.type.shape[1]
    ROWS: gl.constexpr = query.type.shape[0]
    nothing = gl.zeros([ROWS, KEYS], gl.float32, LAYOUT)
    slot = tile % NUM_SLOTS
    mbarrier.wait(key_ready.index(slot), tile // NUM_SLOTS & 1)
    keys = key_slots.index(slot).permute((1, 0))
    return warpgroup_mma(query, keys, nothing, use_acc=False, is_async=True)


@gluon.jit
def _add_up(weights):
    """Each thread's own sums of the weights of a tile."""
    ROWS: gl.constexpr = weights.type.shape[0]
    KEYS: gl.constexpr = weights.type.shape[1]
    return gl.sum(weights.reshape([ROWS, KEYS // LANES, LANES]), 1)


@gluon.jit
def _start_values(weights, mixed, value_slots, value_ready, tile, LAYOUT: gl.constexpr):
    """Start the product of the weights of a tile with its values, on top of `mixed`."""
    NUM_SLOTS: gl.constexpr = value_slots.type.shape[0]
    slot = tile % NUM_SLOTS
    rounded = gl.convert_layout(weights.to(value_slots.dtype), LAYOUT)
    mbarrier.wait(value_ready.index(slot), tile // NUM_SLOTS & 1)
    return warpgroup_mma(rounded, value_slots.index(slot), warpgroup_mma_init(mixed), is_async=True)


@gluon.jit
def _mix(
    query, scores, scale, shift, mixed, key_slots, value_slots, key_ready, value_ready, key_free, value_free,
    num_tiles, SCORES: gl.constexpr, WEIGHTS: gl.constexpr,
):  # fmt: skip
    """(weighted values, sums of weights) of all tiles from the scores of the first one."""
    NUM_SLOTS: gl.constexpr = key_slots.type.shape[0]
    weights = gl.exp2(scores * scale - shift[:, None])
    total = _add_up(weights)
    for tile in range(num_tiles - 1):
        scores = _start_scores(query, key_slots, key_ready, tile + 1, SCORES)
        mixing = _start_values(weights, mixed, value_slots, value_ready, tile, WEIGHTS)
        scores = warpgroup_mma_wait(1, deps=[scores])
        mbarrier.arrive(key_free.index((tile + 1) % NUM_SLOTS), count=1)
        weights = gl.exp2(scores * scale - shift[:, None])
        total += _add_up(weights)
        # The product with the last values reads its weights from registers, which the new ones overwrite:
        # they pass through the wait, so as not to be rounded before it.
        mixed, weights = warpgroup_mma_wait(0, deps=[mixing, weights])
        mbarrier.arrive(value_free.index(tile % NUM_SLOTS), count=1)
    mixing = _start_values(weights, mixed, value_slots, value_ready, num_tiles - 1, WEIGHTS)
    return warpgroup_mma_wait(0, deps=[mixing]), total


@gluon.jit
def _attend_rows(
    group, query_slots, query_ready, key_slots, value_slots, key_ready, value_ready, key_free, value_free,
    score_scale, centre, radius, out, logsumexp, marked, num_tokens, num_heads, num_tiles,
):  # fmt: skip
    """Attention of one group's queries over all keys."""
    KEYS: gl.constexpr = key_slots.type.shape[1]
    ROWS: gl.constexpr = query_slots.type.shape[1]
    DIM: gl.constexpr = query_slots.type.shape[2]
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    mixed_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    weight_layout: gl.constexpr = gl.DotOperandLayout(0, mixed_layout, 2)
    row_layout: gl.constexpr = gl.SliceLayout(1, mixed_layout)
    head = gl.program_id(1)
    scale = gl.load(score_scale + head)
    mbarrier.wait(query_ready, 0)
    shift = _shifts(
        query_slots.index(group), scale, centre, gl.load(radius + head), head * DIM,
        gl.SliceLayout(1, score_layout),
    )  # fmt: skip
    query = query_slots.index(group)
    scores = _start_scores(query, key_slots, key_ready, 0, score_layout)
    scores = warpgroup_mma_wait(0, deps=[scores])
    mbarrier.arrive(key_free.index(0), count=1)
    mixed = gl.zeros([ROWS, DIM], gl.float32, mixed_layout)
    mixed, total = _mix(
        query, scores, scale, shift, mixed, key_slots, value_slots, key_ready, value_ready, key_free,
        value_free, num_tiles, score_layout, weight_layout,
    )  # fmt: skip
    total = gl.convert_layout(gl.sum(total, 1), row_layout)
    group_of_head = gl.program_id(0) * GROUPS + group
    rows = group_of_head * ROWS + gl.arange(0, ROWS, row_layout)
    inside = rows < num_tokens
    # Written so that NaN fails, too.
    sound = (total >= LEAST_SUM) & (total < float("inf")) & (gl.max(gl.abs(mixed), 1) < float("inf"))
    mark = marked + head * gl.cdiv(num_tokens, ROWS) + group_of_head
    failed = gl.max((inside & (sound == 0)).to(gl.int32), 0)
    gl.store(mark, failed, mask=group_of_head * ROWS < num_tokens)
    shift = gl.convert_layout(shift, row_layout)
    gl.store(logsumexp + head * num_tokens + rows, (shift + gl.log2(total)) * _LN_2, mask=inside)
    channels = head * DIM + gl.arange(0, DIM, gl.SliceLayout(0, mixed_layout))
    places = rows.to(gl.int64)[:, None] * (num_heads * DIM) + channels[None, :]
    gl.store(out + places, (mixed / total[:, None]).to(out.dtype.element_ty), mask=inside[:, None])


@gluon.jit
def attend_overlapped_kernel(
    queries, keys, values, score_scale, key_centre, key_radius, out, logsumexp, marked, num_tokens, num_heads,
    num_tiles,
    NUM_SLOTS: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """Attention of GROUPS groups of queries of one head; marks groups whose bound has failed."""
    ROWS: gl.constexpr = queries.block_type.shape[0]
    KEYS: gl.constexpr = keys.block_type.shape[0]
    DIM: gl.constexpr = queries.block_type.shape[1]
    query_slots = gl.allocate_shared_memory(queries.dtype, [GROUPS, ROWS, DIM], queries.layout)
    key_slots = gl.allocate_shared_memory(keys.dtype, [NUM_SLOTS, KEYS, DIM], keys.layout)
    value_slots = gl.allocate_shared_memory(values.dtype, [NUM_SLOTS, KEYS, DIM], values.layout)
    query_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    key_ready = gl.allocate_shared_memory(gl.int64, [NUM_SLOTS, 1], mbarrier.MBarrierLayout())
    value_ready = gl.allocate_shared_memory(gl.int64, [NUM_SLOTS, 1], mbarrier.MBarrierLayout())
    key_free = gl.allocate_shared_memory(gl.int64, [NUM_SLOTS, 1], mbarrier.MBarrierLayout())
    value_free = gl.allocate_shared_memory(gl.int64, [NUM_SLOTS, 1], mbarrier.MBarrierLayout())
    mbarrier.init(query_ready, count=1)
    for slot in gl.static_range(NUM_SLOTS):
        mbarrier.init(key_ready.index(slot), count=1)
        mbarrier.init(value_ready.index(slot), count=1)
        mbarrier.init(key_free.index(slot), count=GROUPS)
        mbarrier.init(value_free.index(slot), count=GROUPS)
    column = gl.program_id(1) * DIM
    row = gl.program_id(0) * GROUPS * ROWS
    mbarrier.expect(query_ready, GROUPS * queries.block_type.nbytes)
    for group in gl.static_range(GROUPS):
        tma.async_copy_global_to_shared(
            queries, [row + group * ROWS, column], query_ready, query_slots.index(group)
        )
    slots = (key_slots, value_slots, key_ready, value_ready, key_free, value_free)
    results = (score_scale, key_centre, key_radius, out, logsumexp, marked, num_tokens, num_heads, num_tiles)
    shared = (query_slots, query_ready) + slots + results  # noqa: RUF005
    copied = (keys, values) + slots + (column, num_tiles)  # noqa: RUF005
    # As many registers for the part that copies as for the others: with fewer, the assembler lets no two
    # products run at once.
    first, second, third = (0,) + shared, (1,) + shared, (2,) + shared  # noqa: RUF005
    gl.warp_specialize(
        [(_attend_rows, first), (_attend_rows, second), (_attend_rows, third), (_copy_tiles, copied)],
        [4, 4, 1],
        [REGISTERS, REGISTERS, REGISTERS],
    )


ROWS = 64
"""Queries of a group of four warps."""
OVERLAPPED_KEYS = 64
"""Keys of one tile; only whole tiles are taken."""
NUM_SLOTS = 6
"""Tiles of keys, and of values, that shared memory holds at once."""
REGISTERS = 65536 // ((GROUPS.value + 1) * 128) // 8 * 8
"""Registers of a thread: as many as all threads of the one program of a multiprocessor can have."""


def attend_overlapped(
    query: Float[Tensor, "B N H D"],
    key: Float[Tensor, "B N H D"],
    value: Float[Tensor, "B N H D"],
    scale: Float[Tensor, "B H"],
    centre: Float[Tensor, "B H D"],
    radius: Float[Tensor, "B H"],
    out: Float[Tensor, "B N H D"],
    logsumexp: Float[Tensor, "B H N 1"],
) -> Int[Tensor, "B H M"]:
    """Marks of the groups that the bound has failed; fills `out` and `logsumexp` of all others.

    bfloat16 with heads side by side, N a multiple of OVERLAPPED_KEYS; `scale`, `centre` and `radius` as
    attention_triton.py makes them.
    """
    num_scenes, num_tokens, num_heads, _ = query.shape
    num_groups = triton.cdiv(num_tokens, ROWS)
    marked = torch.empty(num_scenes, num_heads, num_groups, dtype=torch.int32, device=query.device)
    for scene in range(num_scenes):
        attend_overlapped_kernel[(triton.cdiv(num_groups, GROUPS.value), num_heads)](
            _descriptor(query[scene], ROWS),
            _descriptor(key[scene], OVERLAPPED_KEYS),
            _descriptor(value[scene], OVERLAPPED_KEYS),
            scale[scene],
            centre[scene],
            radius[scene],
            out[scene],
            logsumexp[scene],
            marked[scene],
            num_tokens,
            num_heads,
            num_tokens // OVERLAPPED_KEYS,
            NUM_SLOTS=NUM_SLOTS,
            REGISTERS=REGISTERS,
            num_warps=4,
            maxnreg=REGISTERS,
        )
    return marked


def _descriptor(tensor: Tensor, num_rows: int) -> TensorDescriptor:
    """Blocks of `num_rows` tokens of one head of one scene for the copy engine."""
    num_tokens, num_heads, head_dim = tensor.shape
    layout = gl.NVMMASharedLayout.get_default_for([num_rows, head_dim], gl.bfloat16)
    shape, strides = [num_tokens, num_heads * head_dim], [tensor.stride(0), 1]
    return TensorDescriptor(tensor, shape, strides, [num_rows, head_dim], layout)
