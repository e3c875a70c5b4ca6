"""What every codec offers, the sizes that follow from it, and the statistics of its latents.

Statistics are the affine step between raw latents and diffusion space. Source: docs/reference/data_layout.md,
"Latents".

Shape letters: N videos, L frames (8k + 1), T latent frames (k + 1), C latent channels, H W image, h w latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

SIGMA_DATA = 0.5
"""Standard deviation of latents in diffusion space (GEN3C's sigma_data)."""


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and standard deviation of raw latents for each channel and latent frame."""

    mean: Float[Tensor, "C S"]
    """Means; column k belongs to latent frame k."""
    std: Float[Tensor, "C S"]
    """Standard deviations, all positive."""
    repeat_last: bool = False
    """Whether latent frames beyond the last column use that column; otherwise they are an error."""

    def to(self, device: torch.device | str) -> LatentStatistics:
        """The same statistics on `device`."""
        return replace(self, mean=self.mean.to(device), std=self.std.to(device))

    def to_diffusion(self, raw: Float[Tensor, "*batch C T h w"]) -> Float[Tensor, "*batch C T h w"]:
        """Latents in diffusion space, 0.5 (raw - mean) / std."""
        columns = self._columns(raw)
        return (raw - self._spread(self.mean, columns)) * (SIGMA_DATA / self._spread(self.std, columns))

    def from_diffusion(self, z: Float[Tensor, "*batch C T h w"]) -> Float[Tensor, "*batch C T h w"]:
        """Raw latents, (z / 0.5) std + mean."""
        columns = self._columns(z)
        return z * (self._spread(self.std, columns) / SIGMA_DATA) + self._spread(self.mean, columns)

    def _columns(self, latents: Tensor) -> list[int]:
        num_channels, num_columns = self.mean.shape
        found_channels, latent_frames = latents.shape[-4], latents.shape[-3]
        if found_channels != num_channels:
            raise ValueError(
                f"latents must have {num_channels} channels on axis -4, found shape {tuple(latents.shape)}: "
                "check that the codec is the one the latents were made with, and the axis order [C, T, h, w]"
            )
        if latent_frames > num_columns and not self.repeat_last:
            raise ValueError(
                f"the codec has statistics for {num_columns} latent frames, found {latent_frames}: "
                "use shorter clips"
            )
        return [min(frame, num_columns - 1) for frame in range(latent_frames)]

    @staticmethod
    def _spread(values: Tensor, columns: list[int]) -> Tensor:
        # Stacked views instead of fancy indexing, which would copy the index to the device and wait for it.
        return torch.stack([values[:, column] for column in columns], 1)[..., None, None]


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
