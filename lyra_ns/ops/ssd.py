"""The Mamba-2 scan (state space duality) in several forms with equal values and gradients.

One scan takes the projected tokens [gate | x | B | C | dt] through a causal depthwise convolution, SiLU, the
linear recurrence

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t (x) B_t        y_t = h_t C_t + D x_t

the gate SiLU(z) and a root-mean-square norm (gate first): what `mamba_split_conv1d_scan_combined` of
mamba-ssm computes (docs/reference/decoder.md, "Blocks"). `reference` is the recurrence itself and the truth
for the others; `chunked` does the same with matrix products; `mamba_ssm` calls the Triton kernels; `fused`
scans both directions of a layer at once, in kernels of our own around the state scan:

    convolve (both directions at once)  ->  state scan of 2 H heads in 2 groups  ->  gate, norm, sum

There direction 1 is written in the order of its scan, last token first, by the convolution and read backwards
by the norm; the state scan between them sees one more group of heads, and nothing is flipped in memory. Each
stage has a Triton kernel and a form in torch.

The step dt, the decay and the states are float32 (float64 for float64 tokens) in both torch forms; the
kernels hand states from chunk to chunk in the type of the tokens.

The paper's A, B, C, D and dt are called decay, write, read, skip and step here. Shape letters: B batch, N
tokens, H heads, P channels of a head, I = H P inner channels (of one direction), G groups that share write
and read, S state size, K taps, Q tokens of a chunk, n chunks; an axis of size two is the direction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lyra_ns.ops.ssd_types import (
    KERNEL_CHUNK,
    DirectedTokens,
    ScanForm,
    ScanName,
    ScanWeights,
    why_no_mamba_ssm,
)

TORCH_CHUNK = 64
"""Tokens of a chunk in torch: a matter of speed only (fastest of 32 to 256 on CPU)."""


def recurrent_states(
    x: Float[Tensor, "B N H P"],
    step: Float[Tensor, "B N H"],
    decay: Float[Tensor, " H"],
    write: Float[Tensor, "B N G S"],
    read: Float[Tensor, "B N G S"],
) -> Float[Tensor, "B N H P"]:
    """What the states read out, token after token."""
    heads_per_group = x.shape[2] // write.shape[2]
    write = write.repeat_interleave(heads_per_group, 2)
    read = read.repeat_interleave(heads_per_group, 2)
    fade = torch.exp(step * decay)
    state = x.new_zeros(x.shape[0], *x.shape[2:], write.shape[-1])
    outputs = []
    for token in range(x.shape[1]):
        update = (step[:, token, :, None] * x[:, token])[..., None] * write[:, token, :, None]
        state = fade[:, token, :, None, None] * state + update
        outputs.append((state * read[:, token, :, None]).sum(-1))
    return torch.stack(outputs, 1)


class _PassStates(torch.autograd.Function):
    """States before each chunk from what every chunk adds [B, n, H, S, P] and how much it keeps [B, n, H].

    Written out by hand because autograd would keep a copy of the whole tensor for every chunk.
    """

    @staticmethod
    def forward(ctx: Any, added: Tensor, kept: Tensor) -> Tensor:
        before = torch.empty_like(added)
        state = torch.zeros_like(added[:, 0])
        for chunk in range(added.shape[1]):
            before[:, chunk] = state
            state = torch.addcmul(added[:, chunk], state, kept[:, chunk, :, None, None])
        ctx.save_for_backward(before, kept)
        return before

    @staticmethod
    def backward(ctx: Any, grad_before: Tensor) -> tuple[Tensor, Tensor]:
        before, kept = ctx.saved_tensors
        grad_added, grad_kept = torch.empty_like(before), torch.empty_like(kept)
        grad_state = torch.zeros_like(before[:, 0])
        for chunk in range(before.shape[1] - 1, -1, -1):
            grad_added[:, chunk] = grad_state
            grad_kept[:, chunk] = (grad_state * before[:, chunk]).sum((-1, -2))
            grad_state = torch.addcmul(grad_before[:, chunk], grad_state, kept[:, chunk, :, None, None])
        return grad_added, grad_kept


def chunked_states(
    x: Float[Tensor, "B N H P"],
    step: Float[Tensor, "B N H"],
    decay: Float[Tensor, " H"],
    write: Float[Tensor, "B N G S"],
    read: Float[Tensor, "B N G S"],
    chunk: int = TORCH_CHUNK,
) -> Float[Tensor, "B N H P"]:
    """What the states read out, with matrix products inside chunks and a short recurrence between them."""
    num_tokens, num_heads, num_groups = x.shape[1], x.shape[2], write.shape[2]
    x, step, write, read = (_into_chunks(tensor, chunk) for tensor in (x, step, write, read))
    elapsed = torch.cumsum(step * decay, 2).transpose(2, 3)  # [B, n, H, Q], logarithm of what is left
    x = (x * step[..., None]).transpose(2, 3)  # [B, n, H, Q, P]
    write, read = write.transpose(2, 3), read.transpose(2, 3)  # [B, n, G, Q, S]

    within = (read @ write.mT).unsqueeze(3) * _decay_between_tokens(elapsed).unflatten(2, (num_groups, -1))
    outputs = within.flatten(2, 3) @ x

    until_end = torch.exp(elapsed[..., -1:] - elapsed)
    added = _ungroup(write.mT @ _group(x * until_end[..., None], num_groups), num_heads)
    before = _PassStates.apply(added, torch.exp(elapsed[..., -1]))
    from_before = _ungroup(read @ _group(before, num_groups), num_heads)
    outputs = outputs + from_before * torch.exp(elapsed)[..., None]
    return outputs.transpose(2, 3).flatten(1, 2)[:, :num_tokens]


def _into_chunks(tensor: Tensor, chunk: int) -> Tensor:
    """[B, N, ...] as [B, n, chunk, ...], filled up with zeros (a zero step leaves the state alone)."""
    missing = -tensor.shape[1] % chunk
    if missing:
        tensor = functional.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, missing))
    return tensor.unflatten(1, (-1, chunk))


def _decay_between_tokens(elapsed: Float[Tensor, "B n H Q"]) -> Float[Tensor, "B n H Q Q"]:
    """How much of token j's update is left at token i >= j of the same chunk; zero above the diagonal."""
    future = torch.ones(elapsed.shape[-1], elapsed.shape[-1], dtype=torch.bool, device=elapsed.device).triu(1)
    # Mask the exponent, not the result: exp of the masked half overflows and its gradient would be NaN.
    return torch.exp((elapsed[..., :, None] - elapsed[..., None, :]).masked_fill(future, -torch.inf))


def _group(tensor: Tensor, num_groups: int) -> Tensor:
    """[B, n, H, R, P] as [B, n, G, R, (H/G) P], so that heads of a group share one matrix product."""
    return tensor.unflatten(2, (num_groups, -1)).transpose(3, 4).flatten(4)


def _ungroup(tensor: Tensor, num_heads: int) -> Tensor:
    """[B, n, G, R, (H/G) P] as [B, n, H, R, P]."""
    heads_per_group = num_heads // tensor.shape[2]
    return tensor.unflatten(4, (heads_per_group, -1)).transpose(3, 4).flatten(2, 3)


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
        from lyra_ns.ops.ssd_triton_backward import scan_with_gradient

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
    from lyra_ns.ops.convolution_triton import convolve_both_directions
    from lyra_ns.ops.norm_triton import gated_norm_sum

    return ScanStages(convolve_both_directions, scan_states_in_kernels, gated_norm_sum)


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
        from lyra_ns.ops.norm_triton import branch_norm

        tokens = torch.ones(1, 1, 16, device="cuda")
        branch_norm(tokens, tokens[0, 0], 1e-5, torch.float32)
        torch.cuda.synchronize()
    except Exception as error:  # without a compiler or headers, triton fails in many ways
        return f"triton does not work: {type(error).__name__}: {error}"
    return ""
