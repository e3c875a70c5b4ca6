"""The parts of the decoder, from patches to Gaussian cells, with the module names of the official state dict.

Shape letters: M videos (scenes times views), C latent channels, T latent frames, h w latent cells, L frames,
B scenes, N tokens, E width.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lyra_ns.attention import AttentionName, choose_attention_backend
from lyra_ns.decoder_config import DecoderConfig
from lyra_ns.gaussians import NUM_RAW_CHANNELS
from lyra_ns.ssd import ScanBackend
from lyra_ns.ssd_types import ScanWeights

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
        from lyra_ns.kernels.residual_norm import branch_norm

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
