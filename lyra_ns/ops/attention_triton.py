"""Softmax attention for long sequences of 64-wide heads, made for Hopper GPUs: exact, and with 8-bit scores.

Softmax is the same for any number that is subtracted from all scores of a row. The usual kernels subtract the
running maximum, which costs a reduction and a rescaling for every tile of keys. This one subtracts a bound
that is known beforehand: all keys of a head lie in a ball with centre c and radius r, so that

    q.k = q.c + q.(k - c) <= q.c + |q| r

A bound far above the true maximum would let every weight of a row vanish. Weights are bfloat16, which has the
exponents of float32, and a headroom leaves most of them for this case; a row whose sum still falls under a
threshold marks its tile, and a second launch computes marked tiles with the running maximum. All of that is
decided on the device, nothing waits for the host, and the result never depends on how tight the bound is.

The special function unit of Hopper needs as long for the exponential of a score as its tensor cores need for
the 256 operations around it. A part of the exponentials can be computed by a polynomial instead; on an H200
the instructions that this adds cost more than it saves (benchmarks/kernels/attention.py), so it is off. Where
the tokens are whole tiles another kernel runs, which takes exponentials while other products are computed
(attention_gluon.py): the fastest exact one.

Shape letters: B scenes, N tokens, H heads, D channels of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import triton
from jaxtyping import Float
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from lyra_ns.ops.attention_kernels import attend_tile_kernel, largest_distances_kernel

HEAD_DIM = 64
"""Channels of a head that the kernels are written for."""

_LARGEST_E4M3 = 448.0
_LOG2_E = 1 / math.log(2)


@dataclass(frozen=True)
class AttentionTiles:
    """Sizes of the work of one program; the defaults let two programs share a Hopper multiprocessor."""

    queries: int = 128
    """Queries of a program, a power of two from 64."""
    keys: int = 64
    """Keys of one step, a power of two from 16."""
    num_warps: int = 4
    """Warps of a program, 4 for each 64 or 128 queries."""
    num_stages: int = 3
    """Steps whose keys and values are held in shared memory at once."""
    polynomial_quarters: int = 0
    """Quarters of the exponentials that the multipliers compute in place of the special function unit."""
    sum_columns: int = 1
    """8: the tensor cores sum the rounded weights; 1: plain additions sum them before rounding."""
    query_in_registers: bool = False
    """Hold the queries in registers in place of shared memory, whose bandwidth they then no longer share."""


EIGHT_BIT_TILES = AttentionTiles(keys=128)
"""The fastest for 8-bit queries and keys, which take half the room."""


def attend(
    query: Float[Tensor, "B N H D"],
    key: Float[Tensor, "B N H D"],
    value: Float[Tensor, "B N H D"],
    tiles: AttentionTiles | None = None,
) -> tuple[Float[Tensor, "B N H D"], Float[Tensor, "B H N 1"]]:
    """Softmax attention among all tokens of a scene, and the logarithm (base e) of each row's sum, float32.

    bfloat16 in and out with float32 sums, scale D^-1/2, no mask. The three may be strided parts of one
    tensor, as a joint projection gives them; ValueError if their shapes or dtypes do not suit the kernel.
    With `tiles` the kernel of this file runs, without them the faster one of attention_gluon.py where
    `suits_overlap` holds.
    """
    _check_shapes(query, key, value)
    scale = query.new_full((query.shape[0], query.shape[2]), HEAD_DIM**-0.5 * _LOG2_E, dtype=torch.float32)
    centre = key[:, :: max(1, key.shape[1] // 1024)].mean(1, dtype=torch.float32)
    return _launch(query, key, value, scale, centre, tiles)


def attend_in_eight_bits(
    query: Float[Tensor, "B N H D"],
    key: Float[Tensor, "B N H D"],
    value: Float[Tensor, "B N H D"],
    tiles: AttentionTiles | None = None,
) -> Float[Tensor, "B N H D"]:
    """As `attend`, with queries and keys rounded to 8-bit floats (e4m3) for the scores; values stay bfloat16.

    The mean key is subtracted first: it moves all scores of a row alike, and what is left is smaller, so that
    less is lost. One scale for each head is enough, since 8-bit floats keep their precision over 2^15.
    """
    _check_shapes(query, key, value)
    centre = key[:, :: max(1, key.shape[1] // 1024)].mean(1, keepdim=True, dtype=torch.float32)
    query8, query_scale = _rounded_to_e4m3(query.float())
    key8, key_scale = _rounded_to_e4m3(key - centre)
    scale = query_scale * key_scale * (HEAD_DIM**-0.5 * _LOG2_E)
    no_centre = torch.zeros_like(centre[:, 0])
    return _launch(query8, key8, value, scale, no_centre, tiles or EIGHT_BIT_TILES)[0]


def _rounded_to_e4m3(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The tensor [B, N, H, D] in units of a scale [B, H] for each head, contiguous."""
    scale = tensor.abs().amax((1, 3)).clamp(min=torch.finfo(torch.float32).tiny) / _LARGEST_E4M3
    return (tensor / scale[:, None, :, None]).to(torch.float8_e4m3fn).contiguous(), scale


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Refuse what the kernel is not written for."""
    if not query.shape == key.shape == value.shape or query.shape[-1] != HEAD_DIM or not query.numel():
        raise ValueError(
            f"the attention kernel needs three tensors [B, N, H, {HEAD_DIM}] of one shape, found "
            f"{tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}: choose the backend cudnn"
        )
    if {query.dtype, key.dtype, value.dtype} != {torch.bfloat16}:
        raise ValueError(
            f"the attention kernel needs bfloat16, found {query.dtype}, {key.dtype}, {value.dtype}: cast, or "
            "choose the backend cudnn"
        )


def _launch(
    query: Tensor, key: Tensor, value: Tensor, scale: Tensor, centre: Tensor, tiles: AttentionTiles | None
) -> tuple[Tensor, Tensor]:
    """All launches; `scale` [B, H] makes products powers of two, `centre` [B, H, D] lies amid the keys."""
    num_scenes, num_tokens, num_heads, _ = query.shape
    query, key, value = (side_by_side(part) for part in (query, key, value))
    out = torch.empty(query.shape, dtype=value.dtype, device=query.device)
    logsumexp = scale.new_empty(num_scenes, num_heads, num_tokens, 1)
    radius = radius_of_keys(key, centre)
    if tiles is None and suits_overlap(query, key):
        from lyra_ns.ops.attention_gluon import ROWS, attend_overlapped

        tiles = AttentionTiles(queries=ROWS)
        marked = attend_overlapped(query, key, value, scale, centre, radius, out, logsumexp)
    else:
        tiles = tiles or AttentionTiles()
        num_tiles = triton.cdiv(num_tokens, tiles.queries)
        marked = torch.empty(num_scenes, num_heads, num_tiles, dtype=torch.int32, device=query.device)
        results = (scale, centre, radius, out, logsumexp, marked)
        _launch_tiles(query, key, value, *results, tiles, running_maximum=False)
    results = (scale, centre, radius, out, logsumexp, marked)
    _launch_tiles(query, key, value, *results, tiles, running_maximum=True)
    return out, logsumexp


def suits_overlap(query: Tensor, key: Tensor) -> bool:
    """Whether the kernel of attention_gluon.py takes these tensors: 16 bits, and whole tiles of keys."""
    if not (query.dtype == key.dtype == torch.bfloat16 and query.is_cuda and _has_gluon()):
        return False
    from lyra_ns.ops.attention_gluon import OVERLAPPED_KEYS

    return key.shape[1] % OVERLAPPED_KEYS == 0


@cache
def _has_gluon() -> bool:
    """Whether this Triton has the language of the overlapping kernel."""
    try:
        import lyra_ns.ops.attention_gluon  # noqa: F401
    except ImportError:
        return False
    return True


def _launch_tiles(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: Tensor,
    centre: Tensor,
    radius: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    marked: Tensor,
    tiles: AttentionTiles,
    running_maximum: bool,
) -> None:
    """Launch the kernel for all tiles, or with the running maximum for marked ones."""
    num_scenes, num_tokens, num_heads, head_dim = query.shape
    attend_tile_kernel[(triton.cdiv(num_tokens, tiles.queries), num_heads, num_scenes)](
        _descriptor(query, tiles.queries),
        _descriptor(key, tiles.keys),
        _descriptor(value, tiles.keys),
        scale,
        centre,
        radius,
        out,
        logsumexp,
        marked,
        num_tokens,
        num_heads,
        BLOCK_QUERIES=tiles.queries,
        BLOCK_KEYS=tiles.keys,
        HEAD_DIM=head_dim,
        SUM_COLUMNS=tiles.sum_columns,
        QUARTERS=0 if running_maximum else tiles.polynomial_quarters,
        RUNNING_MAXIMUM=running_maximum,
        HAS_REST=num_tokens % tiles.keys != 0,
        QUERY_IN_REGISTERS=tiles.query_in_registers and query.dtype == torch.bfloat16,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )


def radius_of_keys(key: Float[Tensor, "B N H D"], centre: Float[Tensor, "B H D"]) -> Float[Tensor, "B H"]:
    """Distance of the farthest key of each head from its centre, float32."""
    num_scenes, num_tokens, num_heads, head_dim = key.shape
    key = key if key.stride(3) == 1 else key.contiguous()
    block = 128
    grid = (triton.cdiv(num_tokens, block), num_heads, num_scenes)
    distances = centre.new_empty(num_scenes, num_heads, grid[0])
    largest_distances_kernel[grid](
        key, centre, distances, num_tokens, num_heads, *key.stride()[:3], BLOCK=block, HEAD_DIM=head_dim
    )
    return distances.amax(2).sqrt()


def side_by_side(tensor: Float[Tensor, "B N H D"]) -> Float[Tensor, "B N H D"]:
    """The tensor with the channels of all heads of a token side by side, as the copy engine needs them."""
    scene, token, head, channel = tensor.stride()
    bytes_apart = (token * tensor.element_size(), scene * tensor.element_size(), tensor.data_ptr())
    if head != tensor.shape[3] or channel != 1 or any(number % 16 for number in bytes_apart):
        return tensor.contiguous()
    return tensor


def _descriptor(tensor: Tensor, num_rows: int) -> TensorDescriptor:
    """Blocks of `num_rows` tokens of one head for the copy engine."""
    num_scenes, num_tokens, num_heads, head_dim = tensor.shape
    shape = [num_scenes, num_tokens, num_heads * head_dim]
    return TensorDescriptor(tensor, shape, [*tensor.stride()[:2], 1], [1, num_rows, head_dim])
