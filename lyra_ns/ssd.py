"""The Mamba-2 scan (state space duality) in three forms with equal values and gradients.

One scan takes the projected tokens [gate | x | B | C | dt] through a causal depthwise convolution, SiLU, the
linear recurrence

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t (x) B_t        y_t = h_t C_t + D x_t

the gate SiLU(z) and a root-mean-square norm (gate first): what `mamba_split_conv1d_scan_combined` of
mamba-ssm computes (docs/reference/decoder.md, "Blocks"). `reference` is the recurrence itself and the truth
for the others; `chunked` does the same with matrix products; `mamba_ssm` calls the Triton kernels; `fused`
scans both directions of a layer at once, in kernels of our own around the state scan (ssd_bidirectional.py).
The step dt, the decay and the states are float32 (float64 for float64 tokens) in both torch forms; the
kernels hand states from chunk to chunk in the type of the tokens. ssd_states.py holds the recurrence and its
chunked form.

The paper's A, B, C, D and dt are called decay, write, read, skip and step here. Shape letters: B batch,
N tokens, H heads, P channels of a head, I = H P inner channels, G groups that share write and read, S state
size, K taps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lyra_ns.ssd_bidirectional import kernel_stages, scan_both_directions
from lyra_ns.ssd_states import chunked_states, recurrent_states
from lyra_ns.ssd_types import KERNEL_CHUNK, ScanName, ScanWeights, why_no_mamba_ssm

StateScan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x [B,N,H,P], step [B,N,H], decay [H], write [B,N,G,S], read [B,N,G,S]) -> y [B,N,H,P], without skip."""


def scan_in_torch(
    projected: Float[Tensor, "B N projected"], weights: ScanWeights, state_scan: StateScan
) -> Float[Tensor, "B N I"]:
    """One whole scan around `state_scan`, computed in float32 or better, in the dtype of `projected`."""
    compute = torch.promote_types(projected.dtype, torch.float32)
    inner, heads, groups = weights.inner_size, weights.num_heads, weights.num_groups
    with torch.autocast(projected.device.type, enabled=False):
        gate, channels, step = projected.to(compute).split([inner, weights.conv_bias.shape[0], heads], -1)
        channels = _convolve(channels, weights.conv_weight.to(compute), weights.conv_bias.to(compute))
        state_channels = (channels.shape[-1] - inner) // 2
        x, write, read = channels.split([inner, state_channels, state_channels], -1)
        x = x.unflatten(-1, (heads, -1))
        y = state_scan(
            x,
            functional.softplus(step + weights.step_bias.to(compute)),
            weights.decay.to(compute),
            write.unflatten(-1, (groups, -1)),
            read.unflatten(-1, (groups, -1)),
        )
        y = (y + x * weights.skip.to(compute)[:, None]).flatten(2)
        return _gated_norm(y, gate, weights).to(projected.dtype)


def _convolve(
    channels: Float[Tensor, "B N channels"],
    weight: Float[Tensor, "channels K"],
    bias: Float[Tensor, " channels"],
) -> Float[Tensor, "B N channels"]:
    """Causal depthwise convolution over the tokens, then SiLU."""
    padded = functional.pad(channels.transpose(1, 2), (weight.shape[1] - 1, 0))
    return functional.silu(
        functional.conv1d(padded, weight[:, None], bias, groups=weight.shape[0]).transpose(1, 2)
    )


def _gated_norm(
    y: Float[Tensor, "B N I"], gate: Float[Tensor, "B N I"], weights: ScanWeights
) -> Float[Tensor, "B N I"]:
    """Gate first, then a root-mean-square norm over each group of channels."""
    y = (y * functional.silu(gate)).unflatten(-1, (weights.num_groups, -1))
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + weights.eps)
    return y.flatten(-2) * weights.norm_weight.to(y.dtype)


class _ContiguousGradient(torch.autograd.Function):
    """The identity; hands on a contiguous gradient, which the kernels demand (that of a sum is expanded)."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous()


def scan_in_kernels(
    projected: Float[Tensor, "B N projected"], weights: ScanWeights
) -> Float[Tensor, "B N I"]:
    """One whole scan in the Triton kernels of mamba-ssm; fused as a whole if causal-conv1d is there too."""
    from mamba_ssm.ops.triton import ssd_combined

    if ssd_combined.causal_conv1d_fwd_function is None:
        return _scan_in_separate_kernels(projected, weights)
    scanned = ssd_combined.mamba_split_conv1d_scan_combined(
        projected.contiguous(),
        weights.conv_weight.to(projected.dtype),
        weights.conv_bias.to(projected.dtype),
        weights.step_bias.float(),
        weights.decay.float(),
        weights.skip.float(),
        chunk_size=KERNEL_CHUNK,
        activation="silu",
        rmsnorm_weight=weights.norm_weight.float(),
        rmsnorm_eps=weights.eps,
        headdim=weights.inner_size // weights.num_heads,
        ngroups=weights.num_groups,
        norm_before_gate=False,
    )
    return _ContiguousGradient.apply(scanned)


def _scan_in_separate_kernels(
    projected: Float[Tensor, "B N projected"], weights: ScanWeights
) -> Float[Tensor, "B N I"]:
    """As `scan_in_kernels` with a convolution of torch between the kernels, in the dtype of `projected`."""
    from mamba_ssm.ops.triton.layernorm_gated import rmsnorm_fn
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    dtype, inner, heads, groups = projected.dtype, weights.inner_size, weights.num_heads, weights.num_groups
    with torch.autocast(projected.device.type, enabled=False):
        gate, channels, step = projected.split([inner, weights.conv_bias.shape[0], heads], -1)
        channels = _convolve(channels, weights.conv_weight.to(dtype), weights.conv_bias.to(dtype))
        state_channels = (channels.shape[-1] - inner) // 2
        x, write, read = channels.split([inner, state_channels, state_channels], -1)
        y = mamba_chunk_scan_combined(
            x.unflatten(-1, (heads, -1)),
            step,
            weights.decay.float(),
            write.unflatten(-1, (groups, -1)),
            read.unflatten(-1, (groups, -1)),
            chunk_size=KERNEL_CHUNK,
            D=weights.skip.float(),
            dt_bias=weights.step_bias.float(),
            dt_softplus=True,
        )
        norm_weight, group_size = weights.norm_weight.float(), inner // groups
        y = rmsnorm_fn(y.flatten(2), norm_weight, None, gate, weights.eps, group_size, norm_before_gate=False)
    return _ContiguousGradient.apply(y)


@dataclass(frozen=True)
class ScanBackend:
    """Which form of the scan runs on which device; made by `choose_scan_backend`."""

    on_cpu: ScanName
    """Form for tensors in main memory."""
    on_cuda: ScanName
    """Form for tensors on a CUDA device."""
    reason: str
    """Why, for logs."""

    def form_on(self, device: torch.device) -> ScanName:
        """The form that runs on `device`; ValueError if it needs CUDA and the device is none."""
        form = self.on_cuda if device.type == "cuda" else self.on_cpu
        if form in ("mamba_ssm", "fused") and device.type != "cuda":
            raise ValueError(f"the scan backend {form} needs CUDA tensors, found {device.type}: choose auto")
        return form

    def __call__(
        self, projected: Float[Tensor, "B N projected"], weights: ScanWeights
    ) -> Float[Tensor, "B N I"]:
        """One whole scan over `projected` [gate I | x I | B G S | C G S | dt H]."""
        form = self.form_on(projected.device)
        if form == "fused":
            raise ValueError("the scan backend fused has no single direction: call both_directions")
        if form == "mamba_ssm":
            # Triton launches on the current device, whichever one its tensors are on.
            with torch.cuda.device_of(projected):
                return scan_in_kernels(projected, weights)
        return scan_in_torch(projected, weights, recurrent_states if form == "reference" else chunked_states)

    def both_directions(
        self, projected: Float[Tensor, "B N projected"], forwards: ScanWeights, backwards: ScanWeights
    ) -> Float[Tensor, "B N I"]:
        """The scan with `forwards` plus that with `backwards` over the reversed sequence, reversed back."""
        if self.form_on(projected.device) != "fused":
            return self(projected, forwards) + self(projected.flip(1), backwards).flip(1)
        with torch.cuda.device_of(projected):
            return scan_both_directions(projected, forwards, backwards, kernel_stages())


def choose_scan_backend(name: ScanName = "auto") -> ScanBackend:
    """The backend `name`, or with auto the fastest form for each device; ValueError if it cannot run here."""
    if name in ("reference", "chunked"):
        return ScanBackend(name, name, "as asked")
    if name == "mamba_ssm":
        if obstacle := why_no_mamba_ssm():
            raise ValueError(
                f"the scan backend mamba_ssm cannot run here ({obstacle}): pip install 'lyra-ns[cuda]' on a "
                "CUDA machine, or choose the backend auto or chunked"
            )
        return ScanBackend(name, name, "as asked")
    if name == "fused":
        if obstacle := why_no_fused():
            raise ValueError(
                f"the scan backend fused cannot run here ({obstacle}): it needs a CUDA device and a working "
                "triton, or choose the backend auto or chunked"
            )
        return ScanBackend(name, name, "as asked")
    if name != "auto":
        raise ValueError(f"the scan backend must be one of {', '.join(get_args(ScanName))}, found {name!r}")
    return _fastest_backend()


def _fastest_backend() -> ScanBackend:
    """Chunks in main memory; on CUDA our kernels, else those of mamba-ssm, else chunks, whichever run."""
    no_fused = why_no_fused()
    if not no_fused:
        return ScanBackend("chunked", "fused", "triton works")
    no_mamba_ssm = why_no_mamba_ssm()
    if not no_mamba_ssm:
        return ScanBackend("chunked", "mamba_ssm", f"mamba-ssm imports, but {no_fused}")
    reasons = dict.fromkeys((no_fused, no_mamba_ssm))  # without a CUDA device both are the same
    return ScanBackend("chunked", "chunked", "; ".join(reasons))


def describe_scan_backend(backend: ScanBackend) -> str:
    """One line for logs that names the form in use on each device and why."""
    if backend.on_cpu == backend.on_cuda:
        return f"Mamba-2 scan: {backend.on_cpu} ({backend.reason})"
    return f"Mamba-2 scan: {backend.on_cuda} on CUDA, {backend.on_cpu} on CPU ({backend.reason})"


@cache
def why_no_fused() -> str:
    """What keeps our own Triton kernels from running, empty if nothing does: a small one is built and run."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        from lyra_ns.kernels.residual_norm import branch_norm

        tokens = torch.ones(1, 1, 16, device="cuda")
        branch_norm(tokens, tokens[0, 0], 1e-5, torch.float32)
        torch.cuda.synchronize()
    except Exception as error:  # without a compiler or headers, triton fails in many ways
        return f"triton does not work: {type(error).__name__}: {error}"
    return ""
