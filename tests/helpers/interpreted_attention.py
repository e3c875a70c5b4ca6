"""Runs our attention kernel in Triton's interpreter; prints relative errors against float64 as JSON.

A program of its own, since the interpreter is chosen for a whole process before Triton is imported:
tests/ops/test_attention.py starts it with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from torch.nn import functional
from triton.runtime import interpreter

from lyra_ns.ops.attention import attention_with_logsumexp
from lyra_ns.ops.attention_triton import AttentionTiles, attend, attend_in_eight_bits

SMALL = AttentionTiles(queries=64, keys=32, sum_columns=8)


def _widen(handle: Any) -> np.ndarray:
    """The numbers behind bfloat16, which the interpreter keeps as 16-bit whole numbers."""
    if handle.dtype.scalar == tl.bfloat16:
        return (handle.data.astype(np.uint32) << 16).view(np.float32)
    return handle.data


def compute_bfloat16_as_a_gpu_does() -> None:
    """The interpreter multiplies the bits of bfloat16 as whole numbers and cuts where a GPU rounds."""
    builder = interpreter.InterpreterBuilder
    plain_dot, plain_cast = builder.create_dot, builder.cast_impl

    def dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
        if a.dtype.scalar != tl.bfloat16:
            return plain_dot(self, a, b, d, precision, imprecise)
        return interpreter.TensorHandle(np.matmul(_widen(a), _widen(b)) + d.data, d.dtype.scalar)

    def cast(self: Any, source: Any, to: Any) -> Any:
        if (source.dtype.scalar, to.scalar) != (tl.float32, tl.bfloat16):
            return plain_cast(self, source, to)
        rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16()
        return interpreter.TensorHandle(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)

    builder.create_dot, builder.cast_impl = dot, cast
    builder.create_fp_trunc = lambda self, source, to: cast(self, source, to)


def draw(tokens: int, scenes: int = 1, heads: int = 1, seed: int = 0) -> Tensor:
    """Queries, keys and values as a joint projection leaves them, [B, N, 3, H, 64]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(scenes, tokens, 3, heads, 64, generator=generator).bfloat16()


def expected(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Attention and log-sum-exp in float64."""
    query, key, value = (part.double().transpose(1, 2) for part in qkv.unbind(2))
    scores = query @ key.transpose(-1, -2) / 8
    return (scores.softmax(-1) @ value).transpose(1, 2), scores.logsumexp(-1, keepdim=True)


def relative(found: Tensor, truth: Tensor) -> float:
    """Norm of the difference over the norm of the truth."""
    return ((found.double() - truth).norm() / truth.norm()).item()


def errors(qkv: Tensor, tiles: AttentionTiles = SMALL) -> dict[str, float]:
    """Of the kernel, of its log-sum-exp (absolute), and of torch in bfloat16 on the same numbers."""
    query, key, value = qkv.unbind(2)
    mixed, logsumexp = attend(query, key, value, tiles)
    truth, true_logsumexp = expected(qkv)
    by_torch = functional.scaled_dot_product_attention(*(part.transpose(1, 2) for part in qkv.unbind(2)))
    return {
        "kernel": relative(mixed, truth),
        "logsumexp": (logsumexp.double() - true_logsumexp).abs().max().item(),
        "torch": relative(by_torch.transpose(1, 2), truth),
    }


def far_key() -> Tensor:
    """One key far away, at a right angle to every query: the bound lies thousands above all true scores."""
    qkv = draw(96, heads=2)
    qkv[:, :, 0, :, 0] = 0
    qkv[:, 40, 1] = 0
    qkv[:, 40, 1, :, 0] = 2.0**14
    return qkv


def huge_key() -> Tensor:
    """One key that takes nearly all weight of half of the rows and none of the others'."""
    qkv = draw(96)
    qkv[:, 70, 1] *= 64
    return qkv


def huge_values() -> Tensor:
    """Values that overflow float32 when multiplied with weights far above one."""
    qkv = draw(96)
    qkv[:, :, 2] *= 2.0**100
    return qkv


def gradient_errors() -> list[float]:
    """Of query, key and value, through the operator that saves its output."""
    qkv = draw(80, scenes=2)
    weighting = draw(80, scenes=2, seed=1)[:, :, 0]
    leaf = qkv.clone().requires_grad_()
    mixed, _ = attention_with_logsumexp(*leaf.unbind(2))
    (mixed.float() * weighting.float()).sum().backward()
    exact = qkv.double().requires_grad_()
    (expected(exact)[0] * weighting.double()).sum().backward()
    assert leaf.grad is not None
    assert exact.grad is not None
    return [relative(leaf.grad[:, :, part], exact.grad[:, :, part]) for part in range(3)]


def not_a_number() -> list[bool]:
    """Whether rows are NaN, of the head with a broken key and of the other head."""
    qkv = draw(70, heads=2)
    qkv[0, 3, 1, 0, 5] = float("nan")
    mixed, _ = attend(*qkv.unbind(2), SMALL)
    return [bool(mixed[:, :, 0].isnan().all()), bool(mixed[:, :, 1].isnan().any())]


def other_layout() -> float:
    """Of tensors whose channels do not lie together, which must be copied."""
    qkv = draw(64, heads=2).transpose(3, 4).contiguous().transpose(3, 4)
    return relative(attend(*qkv.unbind(2), SMALL)[0], expected(qkv)[0])


def eight_bits(offset: float) -> float:
    """Of 8-bit scores; `offset` moves all keys alike, which must cost nothing."""
    qkv = draw(200, heads=2)
    qkv[:, :, 1] += offset
    return relative(attend_in_eight_bits(*qkv.unbind(2), SMALL), expected(qkv)[0])


CASES: dict[str, Callable[[], object]] = {
    "whole": lambda: errors(draw(128, heads=2)),
    "rest": lambda: errors(draw(75, scenes=2, heads=2)),
    "short": lambda: errors(draw(5)),
    "peaked": lambda: errors(draw(96) * 3),
    "large": lambda: errors(draw(96) * 8),
    "moved": lambda: errors(draw(96) + torch.tensor([0, 40, 0]).view(3, 1, 1)),
    "no polynomial": lambda: errors(draw(75), AttentionTiles(64, 64, sum_columns=8)),
    "half polynomial": lambda: errors(draw(75), AttentionTiles(64, 64, polynomial_quarters=2, sum_columns=8)),
    "plain sums": lambda: errors(draw(75), AttentionTiles(64, 64, sum_columns=1)),
    "in registers": lambda: errors(draw(75), AttentionTiles(64, 32, sum_columns=8, query_in_registers=True)),
    "far key": lambda: errors(far_key()),
    "huge key": lambda: errors(huge_key()),
    "huge values": lambda: errors(huge_values()),
    "gradients": gradient_errors,
    "not a number": not_a_number,
    "other layout": other_layout,
    "eight bits": lambda: [eight_bits(0.0), eight_bits(8.0)],
}

if __name__ == "__main__":
    compute_bfloat16_as_a_gpu_does()
    np.seterr(all="ignore")
    json.dump({name: case() for name, case in CASES.items()}, sys.stdout)
