"""The state scan of Mamba-2 with gradient: forward in our kernels, backward in those of mamba-ssm.

The backward pass of mamba-ssm computes everything it needs from the inputs, so it does not matter which
kernels ran forward. Ours make training of a block a fourteenth faster on an H200, with equal errors.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.kernels.ssd_forward import ssd_forward
from lyra_ns.ssd import KERNEL_CHUNK


def scan_with_gradient(
    x: Float[Tensor, "B N H P"],
    step: Float[Tensor, "B N H"],
    write: Float[Tensor, "B N G S"],
    read: Float[Tensor, "B N G S"],
    decay: Float[Tensor, " H"],
    skip: Float[Tensor, " H"],
    step_bias: Float[Tensor, " H"],
) -> Float[Tensor, "B N H P"]:
    """What `ssd_forward` gives, differentiable; ImportError in the backward pass without mamba-ssm."""
    return _OwnForward.apply(x, step, write, read, decay, skip, step_bias)


class _OwnForward(torch.autograd.Function):
    """Keeps its inputs alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        write: Tensor,
        read: Tensor,
        decay: Tensor,
        skip: Tensor,
        step_bias: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, step, write, read, decay, skip, step_bias)
        return ssd_forward(x, step, write, read, decay, skip, step_bias)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, ...]:
        return gradients_by_mamba_ssm(grad_y.contiguous(), *ctx.saved_tensors)


def gradients_by_mamba_ssm(
    grad_y: Float[Tensor, "B N H P"],
    x: Float[Tensor, "B N H P"],
    step: Float[Tensor, "B N H"],
    write: Float[Tensor, "B N G S"],
    read: Float[Tensor, "B N G S"],
    decay: Float[Tensor, " H"],
    skip: Float[Tensor, " H"],
    step_bias: Float[Tensor, " H"],
) -> tuple[Tensor, ...]:
    """Gradients of the seven inputs of `scan_with_gradient`, in their order."""
    from mamba_ssm.ops.triton.ssd_combined import _mamba_chunk_scan_combined_bwd

    # Of the result, for which `x` stands here, only the shape is read as long as there is no gate.
    grad_x, grad_step, grad_decay, grad_write, grad_read, grad_skip, _, grad_bias, _ = (
        _mamba_chunk_scan_combined_bwd(
            grad_y, x, step, decay, write, read, x, KERNEL_CHUNK,
            D=skip, dt_bias=step_bias, dt_softplus=True,
        )
    )  # fmt: skip
    return grad_x, grad_step, grad_write, grad_read, grad_decay, grad_skip, grad_bias
