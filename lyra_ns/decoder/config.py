"""Sizes and choices of the decoder, and the counts that follow from them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

import torch

from lyra_ns.gaussians import GaussianHeadConfig
from lyra_ns.ops.attention import AttentionName
from lyra_ns.ops.ssd import scan_form
from lyra_ns.ops.ssd_types import ScanForm, ScanName


@dataclass
class DecoderConfig:
    """Sizes and choices of the decoder. Defaults are the official static model.

    Source: docs/reference/decoder.md, "Configuration".
    """

    width: int = 512
    """Channels of a token."""
    depth: int = 16
    """Number of blocks."""
    pattern: str = "7M1T"
    """Order of the blocks, repeated to the depth: M is a bidirectional Mamba-2 scan, T is full attention."""
    num_heads: int = 8
    """Heads of the attention blocks."""
    mlp_ratio: int = 4
    """Hidden width of the attention blocks' perceptron, in widths."""
    state_size: int = 256
    """State channels of a scan head."""
    head_dim: int = 64
    """Channels of a scan head."""
    expand: int = 2
    """Inner width of a scan, in widths."""
    conv_size: int = 4
    """Taps of the causal convolution before a scan."""
    latent_channels: int = 16
    """Channels of the video latents; ray latents have twice as many."""
    temporal_stride: int = 8
    """Frames per latent frame after the first."""
    spatial_stride: int = 8
    """Pixels per latent cell along each side."""
    patch_size: int = 2
    """Latent cells per token along each side."""
    cell_size: int = 8
    """Pixels per Gaussian along each side."""
    use_time: bool = False
    """Add source and target time to the tokens (the dynamic model)."""
    head: GaussianHeadConfig = field(default_factory=GaussianHeadConfig)
    """How raw outputs become Gaussians."""
    init: Literal["official", "damped"] = "official"
    """Start of the ray and time embeddings; damped shrinks the gain of the norm behind their zero weights."""
    input_statistics: bool = False
    """Keep mean and deviation of the inputs as buffers and whiten with them (small-scale stabiliser)."""
    parity: bool = False
    """Everything in bfloat16, weights, rays and head too, as official code runs (docs/reference/decoder.md,
    "Precision")."""
    trunk_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Matrix products of the blocks; auto is bfloat16 on CUDA and float32 elsewhere. The head is float32."""
    ssd_backend: ScanName = "auto"
    """Form of the Mamba-2 scan (ssd.py); auto takes the fastest that runs on the device."""
    attention: AttentionName = "auto"
    """Form of the attention on a CUDA device: exact in all forms but fp8, which rounds queries and keys."""
    recompute: Literal["auto", "none", "states", "scans", "all"] = "auto"
    """What is computed again in the backward pass instead of being kept: nothing, Mamba blocks and
    perceptrons but neither attention nor the states' results (states), the same with the state scans (scans),
    or every block; auto chooses by the size of the card."""

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit together."""
        if self.width % self.num_heads or self.width * self.expand % self.head_dim:
            raise ValueError(
                f"width {self.width} must be a multiple of num_heads {self.num_heads}, and width * expand "
                f"{self.width * self.expand} of head_dim {self.head_dim}"
            )
        if self.patch_size * self.spatial_stride % self.cell_size:
            raise ValueError(
                f"cell_size {self.cell_size} must divide the {self.patch_size * self.spatial_stride} "
                "pixels of a token"
            )
        if self.temporal_stride % 2:
            raise ValueError(f"temporal_stride must be even, found {self.temporal_stride}")
        block_kinds(self.pattern, self.depth)

    @property
    def cells_per_token(self) -> int:
        """Gaussians per token along each side."""
        return self.patch_size * self.spatial_stride // self.cell_size

    @property
    def inner_width(self) -> int:
        """Channels inside a scan."""
        return self.width * self.expand

    def scan_form(self, form: ScanName, device: torch.device) -> ScanForm:
        """`form` of the scans (never auto) on `device`, the fused one with what computes its states."""
        is_low_precision = self.parity or self.trunk_dtype != "float32"
        dtype = torch.bfloat16 if is_low_precision else torch.float32
        return scan_form(form, dtype, self.head_dim, self.state_size, device)

    def num_tokens(self, num_views: int, latent_frames: int, latent_height: int, latent_width: int) -> int:
        """Length of the sequence for one scene."""
        return (
            num_views * latent_frames * (latent_height // self.patch_size) * (latent_width // self.patch_size)
        )

    def num_gaussians(self, num_views: int, latent_frames: int, latent_height: int, latent_width: int) -> int:
        """Gaussians of one scene before pruning."""
        frames = (latent_frames - 1) * self.temporal_stride + 1
        tokens = self.num_tokens(num_views, 1, latent_height, latent_width)
        return frames * tokens * self.cells_per_token**2


def block_kinds(pattern: str, depth: int) -> str:
    """One letter per block: "7M1T" to depth 16 is MMMMMMMTMMMMMMMT."""
    parts = re.findall(r"(\d*)([MT])", pattern)
    if not parts or "".join(count + kind for count, kind in parts) != pattern:
        raise ValueError(f'a block pattern looks like "7M1T", "M" or "T", found {pattern!r}')
    period = "".join(kind * int(count or 1) for count, kind in parts)
    if not period:
        raise ValueError(f"the block pattern {pattern!r} holds no block")
    return (period * depth)[:depth]


TINY_DECODER = DecoderConfig(
    width=256,
    depth=12,
    pattern="3M1T",
    num_heads=4,
    state_size=64,
    head_dim=64,
    cell_size=4,
    input_statistics=True,
    init="damped",
    head=GaussianHeadConfig(
        near=1.0,
        far=30.0,
        distance_law="logarithmic",
        distance_shift=0.0,
        scale_law="footprint",
        footprint_limit=0.4,
        identity_rotation=True,
    ),
)
"""Sizes of the decoder that ships, with the stabilisers that small data needs (docs/reference/small_scale.md,
"Stabilisers")."""
