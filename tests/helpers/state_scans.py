"""Inputs of the state scan as a decoder makes them, on the GPU, and what it gives in float64."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lyra_ns.ops.ssd import scan_states_in_torch

Inputs = dict[str, Tensor]


def draw(
    num_tokens: int,
    batch: int = 1,
    heads: int = 32,
    groups: int = 2,
    state: int = 256,
    slowness: float = 1.0,
    dtype: torch.dtype = torch.bfloat16,
) -> Inputs:
    """Inputs as a fresh decoder makes them: rates from 1 to 16, steps from 0.001 to 0.1, SiLU before."""
    torch.manual_seed(0)
    inner, shared = heads * 64, groups * state
    rows = functional.silu(torch.randn(batch, num_tokens, inner + 2 * shared, device="cuda")).to(dtype)
    x, write, read = rows.split([inner, shared, shared], -1)
    step_size = torch.exp(torch.empty(heads, device="cuda").uniform_(-6.9, -2.3))
    return {
        "x": x.unflatten(-1, (heads, 64)),
        "step": torch.randn(batch, num_tokens, heads, device="cuda").mul(0.3).to(dtype),
        "write": write.unflatten(-1, (groups, state)),
        "read": read.unflatten(-1, (groups, state)),
        "decay": -torch.empty(heads, device="cuda").uniform_(1, 16) / slowness,
        "skip": torch.randn(heads, device="cuda"),
        "step_bias": torch.log(torch.expm1(step_size)),
    }


def exact(inputs: Inputs) -> Tensor:
    """The scan of torch in float64: float32 itself would be a truth with tf32 or summing errors."""
    return scan_states_in_torch(**{name: tensor.double() for name, tensor in inputs.items()})


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference relative to the expected norm."""
    return ((found.double() - expected).norm() / expected.norm()).item()
