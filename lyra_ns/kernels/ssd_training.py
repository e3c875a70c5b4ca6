"""The state scan of Mamba-2 with gradient, in our own kernels both ways.

It is an operator of torch (`torch.ops.lyra_ns.scan_states`), so that a checkpoint can keep its result by name
while it computes the rest once more (recomputation.py). Its gradients are another, which has none itself, so
that a second derivative is an error and torch.compile can trace both without running them.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.kernels.ssd_backward import ScanGradients, ssd_backward
from lyra_ns.kernels.ssd_forward import ssd_forward

INPUTS = ScanGradients._fields
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
    """What `ssd_forward` gives, differentiable once; RuntimeError in the second derivative."""
    return torch.ops.lyra_ns.scan_states(x, step, write, read, decay, skip, step_bias)


def _forward(
    x: Tensor, step: Tensor, write: Tensor, read: Tensor, decay: Tensor, skip: Tensor, step_bias: Tensor
) -> Tensor:
    return ssd_forward(x, step, write, read, decay, skip, step_bias)


def _gradients(
    grad_y: Tensor,
    x: Tensor,
    step: Tensor,
    write: Tensor,
    read: Tensor,
    decay: Tensor,
    skip: Tensor,
    step_bias: Tensor,
) -> tuple[Tensor, ...]:
    return tuple(ssd_backward(grad_y, x, step, write, read, decay, skip, step_bias))


def _shape_of_result(x: Tensor, *others: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _shapes_of_gradients(grad_y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    of_tokens, of_heads = inputs[:4], inputs[4:]
    shapes = [tensor.new_empty(tensor.shape) for tensor in of_tokens]
    return *shapes, *(tensor.new_empty(tensor.shape, dtype=torch.float32) for tensor in of_heads)


def _keep_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, ...]:
    return torch.ops.lyra_ns.scan_gradients(grad_y.contiguous(), *ctx.saved_tensors)


_TENSORS = ", ".join(f"Tensor {name}" for name in INPUTS)
scan_states = torch.library.custom_op(
    "lyra_ns::scan_states", _forward, mutates_args=(), schema=f"({_TENSORS}) -> Tensor"
)
scan_gradients = torch.library.custom_op(
    "lyra_ns::scan_gradients",
    _gradients,
    mutates_args=(),
    schema=f"(Tensor grad_y, {_TENSORS}) -> ({', '.join(['Tensor'] * len(INPUTS))})",
)
scan_states.register_fake(_shape_of_result)
scan_gradients.register_fake(_shapes_of_gradients)
scan_states.register_autograd(_backward, setup_context=_keep_inputs)
