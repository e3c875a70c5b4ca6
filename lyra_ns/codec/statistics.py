"""Latent statistics: the affine step between raw latents and diffusion space.

Source: docs/reference/data_layout.md, "Latents".
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
