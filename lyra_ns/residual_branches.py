"""The blocks of the decoder as one chain of residual branches, for passes without gradient.

Every block is one or two branches that add to the stream what they make of its norm. Run as a chain, the
addition of one branch and the norm of the next are one kernel, and so the stream is read once for both
(kernels/added_norm.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from lyra_ns.decoder_blocks import MambaBlock, TransformerBlock
from lyra_ns.ssd_types import ScanName


def suits_chain(scan: ScanName) -> bool:
    """Whether the blocks may run as a chain: no gradient wanted, and kernels of our own at work."""
    return not torch.is_grad_enabled() and scan == "fused"


def branch_dtype(tokens: Tensor) -> torch.dtype:
    """The dtype of a branch's products, so that automatic mixed precision makes no copy of its own."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else tokens.dtype


def residual_branches(blocks: Iterable[nn.Module]) -> Iterator[tuple[nn.RMSNorm | nn.LayerNorm, nn.Module]]:
    """The norm and the branch behind it, for every branch of the blocks in order."""
    for block in blocks:
        if isinstance(block, MambaBlock):
            yield block.norm, block.mamba
        else:
            assert isinstance(block, TransformerBlock)
            yield block.norm1, block.attn
            yield block.norm2, block.mlp
