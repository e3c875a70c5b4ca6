"""Both directions of a Mamba-2 layer as one scan of twice the heads, without flips of the sequence.

    convolve (both directions at once)  ->  state scan of 2 H heads in 2 groups  ->  gate, norm, sum

Direction 1 is written in the order of its scan, last token first, by the convolution and read backwards by
the norm; the state scan between them sees one more group of heads. Each stage has a Triton kernel in
kernels/ and a form in torch. Shape letters: B batch, N tokens, I inner channels of one direction, H heads of
one direction, P channels of a head, S state size, K taps; an axis of size two is the direction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lyra_ns.ssd_states import chunked_states
from lyra_ns.ssd_types import (
    KERNEL_CHUNK,
    DirectedTokens,
    ScanForm,
    ScanName,
    ScanWeights,
    why_no_mamba_ssm,
)

KERNEL_STATES = (64, 128, 256)
"""State sizes for which our state scan has tiles that fit a Hopper card."""


@dataclass(frozen=True)
class ScanStages:
    """One way to compute the three stages."""

    convolve: Callable[[Tensor, Tensor, Tensor, int], DirectedTokens]
    """(projected, taps [2, K, channels], bias [2, channels], I): depthwise convolution and SiLU."""
    scan_states: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    """(x, raw step, write, read, decay, skip, step bias) -> y [B, N, heads, P], as `ssd_forward` does."""
    join: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    """(y [B, N, 2, I], gate, weight [2, I], eps): gate and norm of each direction, summed."""


def scan_both_directions(
    projected: Float[Tensor, "B N projected"],
    forwards: ScanWeights,
    backwards: ScanWeights,
    stages: ScanStages,
) -> Float[Tensor, "B N I"]:
    """Sum of the scan with `forwards` and of that with `backwards` over the reversed sequence, reversed back.

    `projected` holds [gate I | x I | write S | read S | step H]. ValueError for several groups.
    """
    if forwards.num_groups != 1 or backwards.num_groups != 1:
        raise ValueError(
            "both directions in one scan need one group each, found "
            f"{forwards.num_groups} and {backwards.num_groups}: choose the scan backend chunked or mamba_ssm"
        )
    weights = (forwards, backwards)
    with torch.autocast(projected.device.type, enabled=False):
        # Taps first, so that neighbouring channels of one tap lie side by side.
        taps = torch.stack([direction.conv_weight.mT for direction in weights])
        bias = torch.stack([direction.conv_bias for direction in weights])
        tokens = stages.convolve(projected, taps, bias, forwards.inner_size)
        y = stages.scan_states(
            tokens.x.reshape(*tokens.x.shape[:2], 2 * forwards.num_heads, -1),
            tokens.step.flatten(2),
            tokens.write,
            tokens.read,
            torch.cat([direction.decay for direction in weights]),
            torch.cat([direction.skip for direction in weights]),
            torch.cat([direction.step_bias for direction in weights]),
        )
        norm_weight = torch.stack([direction.norm_weight for direction in weights])
        return stages.join(y.reshape(tokens.x.shape), tokens.gate, norm_weight, forwards.eps)


def convolve_in_torch(
    projected: Float[Tensor, "B N projected"],
    weight: Float[Tensor, "2 K channels"],
    bias: Float[Tensor, "2 channels"],
    inner_size: int,
) -> DirectedTokens:
    """What `convolve_both_directions` of the kernels gives, from flipped copies; float32 inside or better."""
    compute = torch.promote_types(projected.dtype, torch.float32)
    num_channels = bias.shape[1]
    num_heads = projected.shape[2] - inner_size - num_channels
    gate, channels, step = projected.split([inner_size, num_channels, num_heads], -1)
    ordered = torch.stack([channels, channels.flip(1)], 1).to(compute)  # [B, 2, N, channels]
    padded = functional.pad(ordered.transpose(2, 3).flatten(1, 2), (weight.shape[1] - 1, 0))
    taps = weight.to(compute).mT.flatten(0, 1)[:, None]
    convolved = functional.conv1d(padded, taps, bias.to(compute).flatten(), groups=2 * num_channels)
    convolved = functional.silu(convolved).unflatten(1, (2, -1)).permute(0, 3, 1, 2).to(projected.dtype)
    state_size = (num_channels - inner_size) // 2
    x, write, read = convolved.split([inner_size, state_size, state_size], -1)
    return DirectedTokens(gate, x, torch.stack([step, step.flip(1)], 2), write, read)


def scan_states_in_torch(
    x: Float[Tensor, "B N heads P"],
    step: Float[Tensor, "B N heads"],
    write: Float[Tensor, "B N groups S"],
    read: Float[Tensor, "B N groups S"],
    decay: Float[Tensor, " heads"],
    skip: Float[Tensor, " heads"],
    step_bias: Float[Tensor, " heads"],
) -> Float[Tensor, "B N heads P"]:
    """What the states read out plus the skipped input, with products over chunks, in the dtype of `x`."""
    compute = torch.promote_types(x.dtype, torch.float32)
    dtype = x.dtype
    x, step, write, read, decay = (tensor.to(compute) for tensor in (x, step, write, read, decay))
    step = functional.softplus(step + step_bias.to(compute))
    return (chunked_states(x, step, decay, write, read) + x * skip.to(compute)[:, None]).to(dtype)


def join_in_torch(
    y: Float[Tensor, "B N 2 I"], gate: Float[Tensor, "B N I"], weight: Float[Tensor, "2 I"], eps: float
) -> Float[Tensor, "B N I"]:
    """What `gated_norm_sum` of the kernels gives, in float32 or better."""
    compute = torch.promote_types(y.dtype, torch.float32)
    gated = torch.stack([y[:, :, 0], y[:, :, 1].flip(1)], 2).to(compute)
    gated = gated * functional.silu(gate.to(compute))[:, :, None]
    normed = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + eps)
    return (normed * weight.to(compute)).sum(2).to(y.dtype)


def scan_states_in_kernels(
    x: Float[Tensor, "B N heads P"],
    step: Float[Tensor, "B N heads"],
    write: Float[Tensor, "B N groups S"],
    read: Float[Tensor, "B N groups S"],
    decay: Float[Tensor, " heads"],
    skip: Float[Tensor, " heads"],
    step_bias: Float[Tensor, " heads"],
) -> Float[Tensor, "B N heads P"]:
    """As `scan_states_in_torch`: our kernels where they suit.

    Elsewhere mamba-ssm's, and torch where that is missing.
    """
    decay, skip, step_bias = decay.float(), skip.float(), step_bias.float()
    inputs = (x, step, write, read, decay, skip, step_bias)
    if suits_scan_kernels(x, write):
        from lyra_ns.kernels.ssd_training import scan_with_gradient

        return scan_with_gradient(*inputs)
    if why_no_mamba_ssm():
        return scan_states_in_torch(*inputs)
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    return mamba_chunk_scan_combined(
        x, step, decay, write, read, KERNEL_CHUNK, D=skip, dt_bias=step_bias, dt_softplus=True
    )


def suits_scan_kernels(x: Float[Tensor, "B N heads P"], write: Float[Tensor, "B N groups S"]) -> bool:
    """Whether the state scan has kernels of our own for these tensors."""
    return _has_tiles(x.dtype, x.shape[3], write.shape[3]) and runs_scan_kernels(x.device)


def scan_form(
    form: ScanName, dtype: torch.dtype, head_dim: int, state_size: int, device: torch.device
) -> ScanForm:
    """`form` of a scan (never auto) over `dtype` on `device`, the fused one with what computes its states."""
    assert form != "auto"
    if form != "fused":
        return form
    if _has_tiles(dtype, head_dim, state_size) and runs_scan_kernels(device):
        return "fused"
    return "fused_in_torch" if why_no_mamba_ssm() else "fused_in_mamba_ssm"


def runs_scan_kernels(device: torch.device) -> bool:
    """Whether `device` is a Hopper card and triton can describe tiles to its copy engine."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9:
        return False
    return _describes_tiles()


@cache
def _describes_tiles() -> bool:
    return find_spec("triton") is not None and find_spec("triton.tools.tensor_descriptor") is not None


def _has_tiles(dtype: torch.dtype, channels: int, state: int) -> bool:
    return dtype in (torch.bfloat16, torch.float16) and channels == 64 and state in KERNEL_STATES


TORCH_STAGES = ScanStages(convolve_in_torch, scan_states_in_torch, join_in_torch)
"""The truth for the kernels, on any device and in any precision."""


@cache
def kernel_stages() -> ScanStages:
    """The stages on a CUDA device; ImportError without triton."""
    from lyra_ns.kernels.convolution import convolve_both_directions
    from lyra_ns.kernels.gated_norm import gated_norm_sum

    return ScanStages(convolve_both_directions, scan_states_in_kernels, gated_norm_sum)
