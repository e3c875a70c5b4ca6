"""The parts of the decoder, from patches to Gaussian cells, and what its blocks compute once more going back.

Modules have the names of the official state dict. A Mamba block or a perceptron is cheap to run again and
expensive to keep; attention is the other way round: its cost grows with the square of the number of tokens,
its output and log-sum-exp do not. So the middle way, "scans", keeps attention and recomputes everything else;
the official training recomputes both attention layers while most of the card stays empty
(docs/reference/performance.md, "Training step"). Where there is room, "states" keeps what the state scans
give, too, which only our own kernels can: with other forms of the scan it is the same as "scans".

Shape letters: M videos (scenes times views), C latent channels, T latent frames, h w latent cells, L frames,
B scenes, N tokens of all views, E width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts, noop_context_fn

from lyra_ns.decoder.config import DecoderConfig, block_kinds
from lyra_ns.gaussians import NUM_RAW_CHANNELS
from lyra_ns.ops.attention import AttentionName, choose_attention_backend
from lyra_ns.ops.ssd import ScanBackend, runs_scan_kernels
from lyra_ns.ops.ssd_types import ScanForm, ScanName, ScanWeights

RMS_EPS = 1e-5
"""Floor of the mean square in the norms of the Mamba-2 layers."""


class PatchEmbedding(nn.Module):
    """Tokens of non-overlapping patches of one latent frame."""

    def __init__(self, in_channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        patch = (1, patch_size, patch_size)
        self.proj = nn.Conv3d(in_channels, width, patch, stride=patch)
        self.norm = nn.LayerNorm(width)  # eps 1e-5, unlike the norms of the blocks

    def forward(self, latents: Float[Tensor, "M C T h w"]) -> Float[Tensor, "M N E"]:
        """Tokens in the order frame, row, column; a matrix product in place of the slower convolution."""
        size = self.proj.kernel_size[-1]
        patches = latents.unflatten(4, (-1, size)).unflatten(3, (-1, size))  # [M, C, T, rows, p, columns, p]
        patches = patches.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)
        return self.norm(functional.linear(patches, self.proj.weight.flatten(1), self.proj.bias))


class DirectedScan(nn.Module):
    """The weights of one direction of a Mamba-2 layer."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        inner, num_heads = config.inner_width, config.inner_width // config.head_dim
        channels = inner + 2 * config.state_size
        self.conv1d = nn.Conv1d(channels, channels, config.conv_size, groups=channels)
        self.dt_bias = nn.Parameter(_initial_step_bias(num_heads))
        self.A_log = nn.Parameter(torch.empty(num_heads).uniform_(1.0, 16.0).log())
        self.D = nn.Parameter(torch.ones(num_heads))
        self.norm = nn.RMSNorm(inner, eps=RMS_EPS)

    def forward(self) -> ScanWeights:
        """The weights as the scan takes them, which runs both directions at once where it can."""
        bias = self.conv1d.bias
        assert bias is not None
        return ScanWeights(
            conv_weight=self.conv1d.weight[:, 0],
            conv_bias=bias,
            step_bias=self.dt_bias,
            decay=-torch.exp(self.A_log),
            skip=self.D,
            norm_weight=self.norm.weight,
            eps=RMS_EPS,
        )


def _initial_step_bias(num_heads: int) -> Tensor:
    """Inverse softplus of steps drawn between 1e-3 and 0.1, evenly in their logarithm."""
    step = torch.exp(torch.empty(num_heads).uniform_(math.log(1e-3), math.log(0.1))).clamp(min=1e-4)
    return step + torch.log(-torch.expm1(-step))


class BidirectionalMamba(nn.Module):
    """Two scans over the whole sequence, one of them backwards; their sum is projected back."""

    def __init__(self, config: DecoderConfig, scan: ScanBackend) -> None:
        super().__init__()
        inner = config.inner_width
        projected = 2 * inner + 2 * config.state_size + inner // config.head_dim
        self.in_proj = nn.Linear(config.width, projected, bias=False)
        self.scan = scan
        self.mamba_scans = nn.ModuleList([DirectedScan(config) for _ in range(2)])
        self.out_proj = nn.Linear(inner, config.width, bias=False)

    def forward(self, tokens: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        """Update of the tokens."""
        forwards, backwards = (direction() for direction in self.mamba_scans)
        return self.out_proj(self.scan.both_directions(self.in_proj(tokens), forwards, backwards))


class MambaBlock(nn.Module):
    """A bidirectional Mamba-2 layer behind a norm, with residual and without perceptron."""

    def __init__(self, config: DecoderConfig, scan: ScanBackend) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.width, eps=RMS_EPS)
        self.mamba = BidirectionalMamba(config, scan)

    def forward(self, tokens: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        """The tokens after the block."""
        if self.mamba.scan.form_on(tokens.device) != "fused":
            return tokens + self.mamba(self.norm(tokens))
        from lyra_ns.ops.norm_triton import branch_norm

        # In the dtype of the products, so that automatic mixed precision makes no copy of its own.
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else tokens.dtype
        tokens, normed = branch_norm(tokens, self.norm.weight, RMS_EPS, dtype)
        return tokens + self.mamba(normed)


class Attention(nn.Module):
    """Full attention among all tokens, without positions."""

    def __init__(self, width: int, num_heads: int, backend: AttentionName = "auto") -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attend = choose_attention_backend(backend)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        """Update of the tokens."""
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        return self.proj(self.attend(query, key, value).flatten(2))


class Perceptron(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        """Update of the tokens."""
        return self.fc2(functional.gelu(self.fc1(tokens)))


class TransformerBlock(nn.Module):
    """Attention and perceptron, each behind a norm and with residual."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = Attention(config.width, config.num_heads, config.attention)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = Perceptron(config.width, config.width * config.mlp_ratio)

    def forward(self, tokens: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        """The tokens after the block."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


ALL_CHANNELS = slice(None)


class GaussianDeconvolution(nn.ConvTranspose3d):
    """Tokens back to frames and cells: a transposed convolution with the values of its parent class.

    Spatially its patches do not overlap and in time neighbours share one frame, so that one matrix product
    and one addition replace the general kernel, which is slow at these sizes.
    """

    def __init__(self, width: int, temporal_stride: int, cells_per_token: int) -> None:
        stride = (temporal_stride, cells_per_token, cells_per_token)
        kernel = (temporal_stride + 1, cells_per_token, cells_per_token)
        super().__init__(width, NUM_RAW_CHANNELS, kernel, stride, padding=(temporal_stride // 2, 0, 0))

    def forward(  # type: ignore[override]
        self, tokens: Float[Tensor, "M T rows columns E"]
    ) -> Float[Tensor, "M L H W 12"]:
        """Raw channels of every frame and cell."""
        return self.frames(self.patches(tokens))

    def patches(
        self, tokens: Float[Tensor, "*batch rows columns E"], channels: slice = ALL_CHANNELS
    ) -> Float[Tensor, "*batch rows columns taps k k chosen"]:
        """What each token alone adds to its frames and cells, without the bias, in the chosen channels."""
        # [E, 12, taps, k, k] -> [E, taps k k chosen]: channels last, as the head reads them.
        weight = self.weight[:, channels].permute(0, 2, 3, 4, 1)
        return (tokens @ weight.flatten(1)).unflatten(-1, weight.shape[1:])

    def frames(
        self, patches: Float[Tensor, "M T rows columns taps k k chosen"], channels: slice = ALL_CHANNELS
    ) -> Float[Tensor, "M L H W chosen"]:
        """The chosen raw channels of every frame and cell from the patches of whole videos."""
        num_frames = self.stride[0] * (patches.shape[1] - 1) + 1
        patches = patches.permute(0, 1, 4, 2, 5, 3, 6, 7)  # [M, T, taps, rows, k, columns, k, chosen]
        # The last tap of a token falls on the first frame of the next one.
        carried = functional.pad(patches[:, :-1, -1:], (0,) * 12 + (1, 0))
        frames = torch.cat([patches[:, :, :1] + carried, patches[:, :, 1:-1]], 2)
        frames = frames.flatten(1, 2).flatten(2, 3).flatten(3, 4)
        assert self.bias is not None
        return frames[:, self.num_cropped : self.num_cropped + num_frames] + self.bias[channels]

    @property
    def num_cropped(self) -> int:
        """Frames that the padding takes away in front of the first one."""
        return self.stride[0] // 2


RecomputePolicy = Literal["none", "states", "scans", "all"]
"""What is computed again in the backward pass, from the fastest to the smallest."""

SHARE_FOR_BLOCKS = 0.5
"""Part of a card's memory that the blocks may fill; Gaussians, renders and LPIPS need the rest."""
STREAM_BYTES = 4
"""Bytes of a number in the stream between the blocks, which is float32."""
TORCH_SCAN_COPIES = 6
"""Float32 copies of the projected and inner channels that a scan written in torch keeps in each direction."""


def run_block(
    block: nn.Module, tokens: Float[Tensor, "B N E"], policy: RecomputePolicy
) -> Float[Tensor, "B N E"]:
    """The tokens after `block`; equal values and gradients for every policy."""
    if policy == "none" or not torch.is_grad_enabled():
        return block(tokens)
    if policy in ("states", "scans") and isinstance(block, TransformerBlock):
        tokens = tokens + block.attn(block.norm1(tokens))
        return _recomputed(_Perceived(block), tokens)
    if policy == "states" and runs_scan_kernels(tokens.device):
        return _recomputed(block, tokens, keeping_states)
    return _recomputed(block, tokens)


class _Perceived:
    """The second half of an attention block."""

    def __init__(self, block: TransformerBlock) -> None:
        self._block = block

    def __call__(self, tokens: Tensor) -> Tensor:
        return tokens + self._block.mlp(self._block.norm2(tokens))


def _recomputed(
    function: nn.Module | _Perceived, tokens: Tensor, contexts: Callable[[], Any] = noop_context_fn
) -> Tensor:
    # No random numbers inside: saving their state would only wait for the device.
    return checkpoint(function, tokens, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def keeping_states() -> tuple[Any, Any]:
    """Contexts of a checkpoint that computes everything again but our state scan."""
    from lyra_ns.ops import ssd_triton_backward  # noqa: F401  registers the operator

    return create_selective_checkpoint_contexts([torch.ops.lyra_ns.scan_states.default])


def choose_policy(
    config: DecoderConfig, num_tokens: int, device: torch.device, scan: ScanName
) -> RecomputePolicy:
    """The policy of `config.recompute`; for auto the fastest whose kept bytes fit the card.

    `num_tokens` counts all scenes of the batch, `scan` is the form of the scan on `device`. The size of the
    card decides and not what is free on it, so that a run repeats itself; main memory is never measured.
    """
    if config.recompute != "auto":
        return config.recompute
    if device.type != "cuda":
        return "none"
    memory_bytes = torch.cuda.get_device_properties(device).total_memory
    return policy_for_memory(config, num_tokens, config.scan_form(scan, device), memory_bytes)


def policy_for_memory(
    config: DecoderConfig, num_tokens: int, scan: ScanForm, memory_bytes: int
) -> RecomputePolicy:
    """The fastest policy under which the blocks fill at most their share of `memory_bytes`."""
    policies: tuple[RecomputePolicy, ...] = (
        ("none", "states", "scans") if scan == "fused" else ("none", "scans")
    )
    for policy in policies:
        if kept_bytes(config, num_tokens, policy, scan) <= SHARE_FOR_BLOCKS * memory_bytes:
            return policy
    return "all"


def kept_bytes(config: DecoderConfig, num_tokens: int, policy: RecomputePolicy, scan: ScanForm) -> int:
    """Estimate of what all blocks keep for the backward pass, the one being recomputed there included.

    An upper estimate for bfloat16 (`config.trunk_dtype` float32: for float32); forms of the scan that are
    written in torch keep much more than kernels.
    """
    kinds = block_kinds(config.pattern, config.depth)
    whole = {kind: _kept_numbers(config, kind, scan) for kind in kinds}
    if policy == "none":
        return num_tokens * sum(whole[kind] for kind in kinds)
    stream = STREAM_BYTES * config.width
    attention = 0 if policy == "all" else _attention_bytes(config) + stream
    states = _result_bytes(config) if policy == "states" and scan == "fused" else 0
    between = sum(stream + (attention if kind == "T" else states) for kind in kinds)
    return num_tokens * (between + max(whole.values()))


def _number_bytes(config: DecoderConfig) -> int:
    return 4 if config.trunk_dtype == "float32" else 2


def _kept_numbers(config: DecoderConfig, kind: str, scan: ScanForm) -> int:
    """Bytes per token that one whole block keeps."""
    stream = STREAM_BYTES * config.width
    if kind == "T":
        perceptron = config.width * (2 + 2 * config.mlp_ratio)
        return 2 * stream + _attention_bytes(config) + _number_bytes(config) * perceptron
    return stream + _scan_bytes(config, scan)


def _attention_bytes(config: DecoderConfig) -> int:
    """Normed tokens, queries, keys, values, the output in two layouts, and a log-sum-exp per head."""
    return 6 * config.width * _number_bytes(config) + 4 * config.num_heads


def _result_bytes(config: DecoderConfig) -> int:
    """What the state scans of both directions give."""
    return 2 * config.inner_width * _number_bytes(config)


def _scan_bytes(config: DecoderConfig, scan: ScanForm) -> int:
    """Normed tokens; for each direction the projected ones and the result; their sum."""
    inner, heads = config.inner_width, config.inner_width // config.head_dim
    projected = 2 * inner + 2 * config.state_size + heads
    numbers = config.width + inner + 2 * (projected + 2 * inner)
    kept = numbers * _number_bytes(config)
    if scan in ("reference", "chunked", "fused_in_torch"):
        kept += 2 * 4 * TORCH_SCAN_COPIES * (projected + inner)
    return kept
