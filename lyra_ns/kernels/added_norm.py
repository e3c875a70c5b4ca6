"""The end of one residual branch and the norm at the start of the next in one kernel, without gradient.

    stream' = stream + update          normed = weight (stream' - mean) / deviation + bias

in which a root-mean-square norm has no mean and no bias. The stream is read once in place of twice. Inside
the kernel everything is float32; the norm sees the stream as it is stored.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor, nn

BLOCK = 4
"""Tokens of one program."""


def add_and_norm(
    stream: Float[Tensor, "B N E"],
    update: Float[Tensor, "B N E"] | None,
    norm: nn.RMSNorm | nn.LayerNorm,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "B N E"], Float[Tensor, "B N E"]]:
    """The stream with `update` added, in its own dtype, and its norm in `dtype`; neither has a gradient.

    Without an update the stream itself comes back. ValueError for float64 and where a gradient is wanted.
    """
    _check(stream, norm)
    stream = stream.contiguous()
    width = stream.shape[-1]
    num_tokens = stream.numel() // width
    added = stream if update is None else torch.empty_like(stream)
    normed = torch.empty_like(stream, dtype=dtype)
    with torch.cuda.device_of(stream):
        _add_and_norm_kernel[(triton.cdiv(num_tokens, BLOCK),)](
            stream,
            stream if update is None else update.contiguous(),
            norm.weight.contiguous(),
            norm.weight if (bias := getattr(norm, "bias", None)) is None else bias.contiguous(),
            added,
            normed,
            num_tokens,
            norm.eps,
            WIDTH=width,
            TOKEN_BLOCK=BLOCK,
            CHANNEL_BLOCK=triton.next_power_of_2(width),
            HAS_UPDATE=update is not None,
            HAS_BIAS=bias is not None,
            CENTRED=isinstance(norm, nn.LayerNorm),
            num_warps=4,
        )
    return added, normed


def _check(stream: Tensor, norm: nn.RMSNorm | nn.LayerNorm) -> None:
    if stream.dtype == torch.float64:
        raise ValueError(
            "the kernel computes in float32, found a float64 stream: choose the scan backend chunked"
        )
    if torch.is_grad_enabled() and (stream.requires_grad or norm.weight.requires_grad):
        raise ValueError(
            "the kernel has no gradient, found one wanted: call it under torch.no_grad, or branch_norm"
        )


@triton.jit
def _add_and_norm_kernel(
    stream,
    update,
    weight,
    bias,
    added,
    normed,
    num_tokens,
    eps,
    WIDTH: tl.constexpr,
    TOKEN_BLOCK: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr,
    HAS_UPDATE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CENTRED: tl.constexpr,
):
    """One block of tokens."""
    start = tl.program_id(0).to(tl.int64) * TOKEN_BLOCK
    row = tl.arange(0, TOKEN_BLOCK)[:, None]
    channel = tl.arange(0, CHANNEL_BLOCK)[None, :]
    is_channel = channel < WIDTH
    mask = (start + row < num_tokens) & is_channel
    place = start * WIDTH + (row * WIDTH + channel)
    tokens = tl.load(stream + place, mask=mask, other=0.0)
    if HAS_UPDATE:
        change = tl.load(update + place, mask=mask, other=0.0).to(tl.float32)
        tokens = (tokens.to(tl.float32) + change).to(added.dtype.element_ty)
        tl.store(added + place, tokens, mask=mask)
    tokens = tokens.to(tl.float32)
    if CENTRED:
        tokens = tl.where(is_channel, tokens - (tl.sum(tokens, 1) / WIDTH)[:, None], 0.0)
    tokens *= tl.rsqrt(tl.sum(tokens * tokens, 1) / WIDTH + eps)[:, None]
    tokens *= tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32)
    if HAS_BIAS:
        tokens += tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)
    tl.store(normed + place, tokens, mask=mask)
