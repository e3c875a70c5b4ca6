"""Attention by the kernel in which tensor cores never wait for exponentials (overlapped_attention_kernel.py).

The same bound in place of a running maximum, the same marks for queries that it fails and the same results as
the kernel of attention.py, which calls this one and computes marked queries again.

Shape letters: B scenes, N tokens, H heads, D channels of a head, M groups of ROWS queries.
"""

from __future__ import annotations

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from lyra_ns.kernels.overlapped_attention_kernel import GROUPS, attend_overlapped_kernel

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
    attention.py makes them.
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
