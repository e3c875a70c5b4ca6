"""The large matrices of GEN3C's network in 8-bit floats (e4m3), with a scale for each of their rows.

`store` halves the memory of the weights and multiplies in the tokens' precision. `multiply` rounds the tokens
as well, each with a scale of its own, and uses the 8-bit tensor cores of Hopper and newer; elsewhere the same
numbers are multiplied in float32. diffusers' layerwise casting stores 8 bits without scales: a weight under
1/64, which most are, then loses more bits the smaller it is.

**This changes results**, and cannot be undone: load the network again.

Shape letters: M rows, I and O channels in and out.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

EightBits = Literal["store", "multiply"]

LARGEST = 448.0
"""The largest number of e4m3."""
FEWEST_TOKENS = 17
"""Rows from which 8-bit products pay; the kernels want more than 16."""


class EightBitLinear(nn.Module):
    """Stands for an nn.Linear without bias; no gradient reaches its weights.

    They are parameters, because diffusers' group offloading leaves buffers on the device.
    """

    def __init__(self, linear: nn.Linear, mode: EightBits) -> None:
        super().__init__()
        bias: Tensor | None = linear.bias
        if bias is not None:
            raise ValueError("8-bit matrices have no bias, and GEN3C's linear layers neither: found one")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.mode: EightBits = mode
        weight8, scale = rounded_rows(linear.weight.detach())
        self.weight8 = nn.Parameter(weight8, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)

    def forward(self, tokens: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        """The product in the dtype of the tokens."""
        rows = tokens.flatten(0, -2)
        if self.mode == "store" or len(rows) < FEWEST_TOKENS:
            return functional.linear(tokens, (self.weight8.float() * self.scale).to(tokens.dtype))
        return multiply(rows, self.weight8, self.scale).unflatten(0, tokens.shape[:-1])

    def _apply(self, function: Any, recurse: bool = True) -> EightBitLinear:
        """Follows to other devices, and keeps its numbers where other layers change theirs."""
        return super()._apply(lambda tensor: tensor.to(function(tensor[:0]).device), recurse)


def rounded_rows(matrix: Float[Tensor, "M I"]) -> tuple[Tensor, Float[Tensor, "M 1"]]:
    """(e4m3 numbers [M, I], the scale of each row): their product is about `matrix`."""
    largest = matrix.abs().amax(1, keepdim=True).float()
    scale = largest.clamp(min=torch.finfo(torch.float32).tiny * LARGEST) / LARGEST
    return (matrix.float() / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


def multiply(
    rows: Float[Tensor, "M I"], weight8: Tensor, scale: Float[Tensor, "O 1"]
) -> Float[Tensor, "M O"]:
    """Rounded rows times rounded weights, in the dtype of the rows."""
    rows8, row_scale = _rounded_tokens(rows)
    if not can_multiply(rows.device) or rows.dtype != torch.bfloat16:
        return (rows8.float() @ weight8.float().t() * row_scale * scale.t()).to(rows.dtype)
    return torch._scaled_mm(
        rows8, weight8.t(), row_scale, scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True
    )


def _rounded_tokens(rows: Tensor) -> tuple[Tensor, Tensor]:
    if rows.is_cuda:
        from lyra_ns.generation.gen3c.rounding_kernel import round_rows

        return round_rows(rows)
    return rounded_rows(rows)


def can_multiply(device: torch.device) -> bool:
    """Whether the device has 8-bit tensor cores that take a scale for each row."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9


def use_eight_bits(transformer: Any, mode: EightBits) -> int:
    """Puts EightBitLinears into the blocks in place, for all but modulation; returns the bytes saved."""
    saved = 0
    for block in transformer.transformer_blocks:
        for part in (block.attn1, block.attn2, block.ff):
            for owner in list(part.modules()):
                for name, linear in list(owner.named_children()):
                    if isinstance(linear, nn.Linear):
                        setattr(owner, name, EightBitLinear(linear, mode))
                        saved += linear.weight.numel() * (linear.weight.element_size() - 1)
    return saved
