"""The state scan of Mamba-2 with gradient, in our own kernels both ways.

It is an operator of torch (`torch.ops.lyra_ns.scan_states`), so that a checkpoint can keep its result by name
while it computes the rest once more (recomputation.py).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.kernels.ssd_backward import ssd_backward
from lyra_ns.kernels.ssd_forward import ssd_forward

INPUTS = ("x", "step", "write", "read", "decay", "skip", "step_bias")
"""Tensors that the scan takes, in the order of their gradients."""


def scan_with_gradient(
    x: Float[Tensor, "B N H P"],
    step: Float[Tensor, "B N H"],
    write: Float[Tensor, "B N G S"],
    read: Float[Tensor, "B N G S"],
    decay: Float[Tensor, " H"],
    skip: Float[Tensor, " H"],
    step_bias: Float[Tensor, " H"],
) -> Float[Tensor, "B N H P"]:
    """What `ssd_forward` gives, differentiable once."""
    return torch.ops.lyra_ns.scan_states(x, step, write, read, decay, skip, step_bias)


def _forward(
    x: Tensor, step: Tensor, write: Tensor, read: Tensor, decay: Tensor, skip: Tensor, step_bias: Tensor
) -> Tensor:
    return ssd_forward(x, step, write, read, decay, skip, step_bias)


def _keep_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, ...]:
    return tuple(ssd_backward(grad_y.contiguous(), *ctx.saved_tensors))


scan_states = torch.library.custom_op(
    "lyra_ns::scan_states",
    _forward,
    mutates_args=(),
    schema=f"({', '.join(f'Tensor {name}' for name in INPUTS)}) -> Tensor",
)
scan_states.register_autograd(_backward, setup_context=_keep_inputs)
