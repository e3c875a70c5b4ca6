"""Fits the linear codec's bases to videos by principal components. Deterministic."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.codec.linear import BLOCK, FIRST_SIZE, GROUP_GAIN, GROUP_SIZE, LinearCodec, blocks_of_video
from lyra_ns.codec.statistics import LatentStatistics
from lyra_ns.data.files import write_whole


class _Moments:
    """Sums from which mean and covariance of block vectors follow, in float64."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self.total = torch.zeros(size, dtype=torch.float64)
        self.products = torch.zeros(size, size, dtype=torch.float64)

    def add(self, blocks: Float[Tensor, "*batch D"]) -> None:
        """Counts these blocks in."""
        rows = blocks.reshape(-1, blocks.shape[-1])
        self.count += len(rows)
        self.total += rows.sum(0, dtype=torch.float64).cpu()
        self.products += (rows.T @ rows).double().cpu()

    def principal(self, num_channels: int, direction: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        """(mean [D], orthonormal rows [C, D], variances [C], share of the variance they hold).

        Each row points along `direction`: eigenvectors are only known up to their sign.
        """
        mean = self.total / self.count
        covariance = self.products / self.count - mean[:, None] * mean
        variances, vectors = torch.linalg.eigh(covariance)
        basis = vectors[:, -num_channels:].T.flip(0)
        kept = variances[-num_channels:].flip(0)
        signs = torch.where(basis @ direction < 0, -1.0, 1.0)
        return mean, basis * signs[:, None], kept, float(kept.sum() / variances.sum())


def _sign_directions() -> tuple[Float[Tensor, " 192"], Float[Tensor, " 1536"]]:
    """Generic directions that make mean brightness positive, and signs alike in both bases on still video."""
    generator = torch.Generator().manual_seed(0)
    still = 1.0 + torch.randn(3, BLOCK, BLOCK, dtype=torch.float64, generator=generator)
    motion = torch.randn(3, BLOCK, BLOCK, BLOCK, dtype=torch.float64, generator=generator)
    return still.flatten(), (still[:, None] + 0.1 * motion).flatten()


@dataclass(frozen=True)
class CodecFit:
    """What a fit gave."""

    codec: LinearCodec
    """The codec."""
    num_videos: int
    """Videos it was fitted to."""
    first_variance_share: float
    """Share of the variance of first-frame blocks that 16 channels hold."""
    group_variance_share: float
    """Share of the variance of 8-frame blocks that 16 channels hold."""


def fit_linear_codec(videos: Iterable[Float[Tensor, "N 3 L H W"]], num_channels: int = 16) -> CodecFit:
    """The linear codec of least squared error on `videos` (colours -1 to 1), with its latent statistics.

    ValueError when the videos hold too few different blocks to fit a basis.
    """
    first, group, num_videos = _Moments(FIRST_SIZE), _Moments(GROUP_SIZE), 0
    for video in videos:
        first_blocks, group_blocks = blocks_of_video(video.float())
        first.add(first_blocks)
        group.add(group_blocks)
        num_videos += len(video)
    if min(first.count, group.count) <= num_channels:
        raise ValueError(
            f"fitting {num_channels} channels needs more than {num_channels} blocks of each kind, found "
            f"{first.count} of first frames and {group.count} of 8-frame groups: give more or larger videos"
        )
    still, moving = _sign_directions()
    first_mean, first_basis, first_variances, first_share = first.principal(num_channels, still)
    group_mean, group_basis, group_variances, group_share = group.principal(num_channels, moving)
    if min(first_variances[-1], group_variances[-1]) <= 1e-10:
        raise ValueError(
            f"the videos vary in fewer than {num_channels} ways, so no basis can be fitted: give more videos"
        )
    means = torch.stack([first_basis @ first_mean, GROUP_GAIN * (group_basis @ group_mean)], 1)
    stds = torch.stack([first_variances.sqrt(), GROUP_GAIN * group_variances.sqrt()], 1)
    codec = LinearCodec(
        first_basis=first_basis.float(),
        first_mean=first_mean.float(),
        group_basis=group_basis.float(),
        group_mean=group_mean.float(),
        statistics=LatentStatistics(means.float(), stds.float(), repeat_last=True),
    )
    return CodecFit(codec, num_videos, first_share, group_share)


def fit_codec_file(videos: Iterable[Float[Tensor, "N 3 L H W"]], path: Path) -> CodecFit:
    """Fits the linear codec to `videos` and writes it to `path`; the body of `ns-lyra fit-codec`."""
    fit = fit_linear_codec(videos)
    write_whole(path, fit.codec.to_bytes())
    return fit
