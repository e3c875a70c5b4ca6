"""What every codec offers, and the sizes that follow from it.

Shape letters: N videos, L frames (8k + 1), T latent frames (k + 1), C latent channels, H W image, h w latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class VideoLatentSpec:
    """How a codec's latents relate to the video they stand for."""

    codec: str
    """Name under which `load_codec` finds the codec."""
    num_channels: int = 16
    """Latent channels."""
    temporal_stride: int = 8
    """Frames per latent frame after the first, which stands alone (causal)."""
    spatial_stride: int = 8
    """Pixels per latent cell along each side."""
    digest: str = ""
    """Fingerprint of the codec's weights, so that latents of another fit are told apart; empty: unknown."""

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, T, h, w) of a video; ValueError if the codec cannot take its size."""
        if num_frames < 1 or (num_frames - 1) % self.temporal_stride:
            raise ValueError(
                f"a video must have {self.temporal_stride}k + 1 frames, found {num_frames}: "
                f"cut it to {max(num_frames - 1, 0) // self.temporal_stride * self.temporal_stride + 1}"
            )
        if height % self.spatial_stride or width % self.spatial_stride:
            raise ValueError(
                f"height and width must be multiples of {self.spatial_stride}, found {height}x{width}: "
                "crop or resize the video"
            )
        latent_frames = (num_frames - 1) // self.temporal_stride + 1
        return self.num_channels, latent_frames, height // self.spatial_stride, width // self.spatial_stride

    def num_frames(self, latent_frames: int) -> int:
        """Frames of a video with so many latent frames."""
        return (latent_frames - 1) * self.temporal_stride + 1


@runtime_checkable
class VideoCodec(Protocol):
    """A frozen encoder and decoder. Implementations are plain objects, never submodules of a model."""

    @property
    def spec(self) -> VideoLatentSpec:
        """How the latents relate to the video."""
        ...

    def to(self, device: torch.device | str) -> VideoCodec:
        """The same codec on `device`."""
        ...

    def encode(self, video: Float[Tensor, "N 3 L H W"]) -> Float[Tensor, "N C T h w"]:
        """Raw latents of videos; colours run from -1 to 1, ray maps go in as they are."""
        ...

    def decode(self, raw: Float[Tensor, "N C T h w"]) -> Float[Tensor, "N 3 L H W"]:
        """Videos of raw latents, colours about -1 to 1 (not clamped)."""
        ...

    def to_diffusion(self, raw: Float[Tensor, "*batch C T h w"]) -> Float[Tensor, "*batch C T h w"]:
        """Latents in diffusion space, as they are stored: 0.5 (raw - mean) / std."""
        ...

    def from_diffusion(self, z: Float[Tensor, "*batch C T h w"]) -> Float[Tensor, "*batch C T h w"]:
        """Raw latents from diffusion space: (z / 0.5) std + mean."""
        ...


@runtime_checkable
class MapEncoder(Protocol):
    """A codec that encodes smooth maps (rays, times) for less than pictures, into latents of their own."""

    def encode_maps(self, maps: Float[Tensor, "N 3 L H W"]) -> Float[Tensor, "N C T h w"]:
        """Latents for the decoder's conditioning, as large as those of `encode` but not for `decode`."""
        ...


@runtime_checkable
class FrameDecoder(Protocol):
    """A codec that can decode single frames for less than the whole video."""

    def decode_frames(
        self, raw: Sequence[Float[Tensor, "C T h w"]], frames: Sequence[int]
    ) -> Float[Tensor, "n 3 H W"]:
        """Frame `frames[n]` of the video of `raw[n]`, equal to what `decode` gives there."""
        ...
