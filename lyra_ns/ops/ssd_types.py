"""What all forms of the Mamba-2 scan share: their names, sizes and tensors, and whether mamba-ssm runs.

Shape letters: B batch, N tokens, I inner channels of one direction, H heads, G groups that share write and
read, S state size, K taps; an axis of size two is the direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

ScanName = Literal["auto", "reference", "chunked", "mamba_ssm", "fused"]
"""Form of the scan as it is chosen; auto takes the fastest that runs on the device."""
ScanForm = Literal["reference", "chunked", "mamba_ssm", "fused", "fused_in_mamba_ssm", "fused_in_torch"]
"""Form of the scan; of the fused form, what computes its states: our own kernels, mamba-ssm or torch."""

KERNEL_CHUNK = 256
"""Tokens of a chunk in the Triton kernels, the official number."""


@dataclass(frozen=True)
class ScanWeights:
    """The weights of one scan."""

    conv_weight: Float[Tensor, "channels K"]
    """Causal depthwise taps over x, B and C; the last tap meets the current token."""
    conv_bias: Float[Tensor, " channels"]
    """Bias of the convolution; channels = I + 2 G S."""
    step_bias: Float[Tensor, " H"]
    """Added to the raw step before the softplus (dt_bias)."""
    decay: Float[Tensor, " H"]
    """Negative rate at which the state of a head fades (A)."""
    skip: Float[Tensor, " H"]
    """Share of the input that bypasses the state (D)."""
    norm_weight: Float[Tensor, " I"]
    """Gain of the gated norm."""
    num_groups: int = 1
    """Heads of one group share write and read vectors, and the norm runs over one group."""
    eps: float = 1e-5
    """Floor of the mean square in the norm."""

    @property
    def num_heads(self) -> int:
        """H."""
        return self.step_bias.shape[0]

    @property
    def inner_size(self) -> int:
        """I, the channels of gate, x and result."""
        return self.norm_weight.shape[0]


class DirectedTokens(NamedTuple):
    """What the state scans of both directions and the norm behind them read."""

    gate: Float[Tensor, "B N I"]
    """Before its SiLU, in the order of the tokens."""
    x: Float[Tensor, "B N 2 I"]
    """Input of the states; this and all below: direction 1 from the last token to the first."""
    step: Float[Tensor, "B N 2 H"]
    """Raw, before bias and softplus."""
    write: Float[Tensor, "B N 2 S"]
    """How inputs enter the states (B)."""
    read: Float[Tensor, "B N 2 S"]
    """How states are read (C)."""


@cache
def why_no_mamba_ssm() -> str:
    """What keeps the Triton kernels from running, empty if nothing does."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        import mamba_ssm.ops.triton.ssd_combined  # noqa: F401
    except (
        ImportError,
        OSError,
        RuntimeError,
    ) as error:  # a wheel built for another torch fails in many ways
        return f"mamba-ssm does not import: {error}"
    return ""
