"""A Triton kernel that rounds rows to 8-bit floats, each with its own scale, in one pass."""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor


def round_rows(rows: Float[Tensor, "M I"]) -> tuple[Tensor, Float[Tensor, "M 1"]]:
    """(e4m3 numbers [M, I], float32 scales): the largest number of a row becomes 448."""
    rows = rows.contiguous()
    num_rows, width = rows.shape
    rounded = torch.empty_like(rows, dtype=torch.float8_e4m3fn)
    scale = rows.new_empty(num_rows, 1, dtype=torch.float32)
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(rows):
        _round_rows_kernel[(num_rows,)](
            rows, rounded, scale, WIDTH=width, BLOCK=block, num_warps=8 if block >= 2048 else 4
        )
    return rounded, scale


@triton.jit
def _round_rows_kernel(rows, rounded, scale, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    mask = channel < WIDTH
    values = tl.load(rows + row * WIDTH + channel, mask=mask, other=0.0).to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(values), 0), 1e-30)
    # Rounded divisions: a last bit that is off sends ties, of which there are many, elsewhere. torch divides
    # by 448 so on a CPU alone; on CUDA it multiplies with a rounded reciprocal, and its scales may differ.
    factor = tl.div_rn(largest, 448.0)
    tl.store(scale + row, factor)
    values = tl.minimum(tl.maximum(tl.div_rn(values, factor), -448.0), 448.0)
    tl.store(rounded + row * WIDTH + channel, values.to(tl.float8e4nv), mask=mask)
