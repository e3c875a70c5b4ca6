"""The embedded codec: a linear causal 8x8x8 transform with 16 channels. No network, no download.

The first frame stands alone (blocks of 3 x 8 x 8 = 192 numbers -> 16), then come groups of 8 frames (3 x 8 x
8 x 8 = 1536 numbers -> 16), as in the Cosmos tokenizer. The bases are principal components with orthonormal
rows, so encoding is one matrix product, decoding its transpose plus a constant, and encoding what was decoded
gives the same latents again. Groups are divided by sqrt(8), which gives a still video the same latents in
every latent frame up to the choice of basis (docs/reference/small_scale.md, "Linear codec").

Shape letters: N videos, L frames (8k + 1), T latent frames (k + 1), C latent channels, H W image, h w latent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from lyra_ns.codec.base import LatentStatistics, VideoLatentSpec

BLOCK = 8
"""Side of a block in pixels, and frames in a group."""
FIRST_SIZE = 3 * BLOCK**2
"""Numbers in a block of the first frame."""
GROUP_SIZE = 3 * BLOCK**3
"""Numbers in a block of a group of frames."""
GROUP_GAIN = 1.0 / math.sqrt(BLOCK)
"""Factor on group coefficients; 8 equal frames would otherwise give sqrt(8) times the first frame's."""

DIGEST_DIGITS = 16
"""Hexadecimal digits of the SHA-256 of a codec's file that name it."""


@dataclass(frozen=True)
class LinearCodec:
    """Linear causal 8x8x8 codec. Float32, on any device, exactly linear when encoding."""

    first_basis: Float[Tensor, "C 192"]
    """Orthonormal rows for blocks (colour, y, x) of the first frame."""
    first_mean: Float[Tensor, " 192"]
    """Mean block of first frames; only its part outside the basis is used."""
    group_basis: Float[Tensor, "C 1536"]
    """Orthonormal rows for blocks (colour, frame, y, x) of 8 frames."""
    group_mean: Float[Tensor, " 1536"]
    """Mean block of groups; only its part outside the basis is used."""
    statistics: LatentStatistics
    """Two columns: the first latent frame, and all later ones."""
    digest: str = ""
    """Fingerprint of all the above, computed where it is not given: `to` hands it on instead of waiting."""

    def __post_init__(self) -> None:
        """Take the fingerprint."""
        if not self.digest:
            object.__setattr__(self, "digest", sha256(self.to_bytes()).hexdigest()[:DIGEST_DIGITS])

    @property
    def spec(self) -> VideoLatentSpec:
        """Sizes of the latents, and the digest."""
        return VideoLatentSpec("linear", self.first_basis.shape[0], BLOCK, BLOCK, self.digest)

    def to(self, device: torch.device | str) -> LinearCodec:
        """The same codec on `device`."""
        return replace(
            self,
            first_basis=self.first_basis.to(device),
            first_mean=self.first_mean.to(device),
            group_basis=self.group_basis.to(device),
            group_mean=self.group_mean.to(device),
            statistics=self.statistics.to(device),
        )

    def encode(self, video: Float[Tensor, "N 3 L H W"]) -> Float[Tensor, "N C T h w"]:
        """Raw latents: linear in the video, so a zero map gives zero latents."""
        self.spec.latent_shape(*video.shape[2:])
        first, groups = blocks_of_video(video.float())
        first_raw = first @ self.first_basis.T
        group_raw = groups @ (self.group_basis.T * GROUP_GAIN)
        return torch.cat([first_raw, group_raw], 1).permute(0, 4, 1, 2, 3).contiguous()

    def decode(self, raw: Float[Tensor, "N C T h w"]) -> Float[Tensor, "N 3 L H W"]:
        """The least-squares video of these latents, colours about -1 to 1 (not clamped)."""
        rows = raw.float().permute(0, 2, 3, 4, 1)
        first_rest = outside_basis(self.first_mean, self.first_basis)
        group_rest = outside_basis(self.group_mean, self.group_basis)
        first = rows[:, :1] @ self.first_basis + first_rest
        groups = rows[:, 1:] @ (self.group_basis / GROUP_GAIN) + group_rest
        return video_of_blocks(first, groups)

    def decode_frames(
        self, raw: Sequence[Float[Tensor, "C T h w"]], frames: Sequence[int]
    ) -> Float[Tensor, "n 3 H W"]:
        """Frame `frames[n]` of the video of `raw[n]`, for the price of one frame."""
        bases, rests = zip(*(self._frame_basis(frame) for frame in frames), strict=True)
        latent_frames = [(frame + BLOCK - 1) // BLOCK for frame in frames]
        cells = torch.stack([clip[:, latent] for clip, latent in zip(raw, latent_frames, strict=True)])
        rows = cells.float().permute(0, 2, 3, 1).flatten(1, 2)
        blocks = torch.baddbmm(torch.stack(rests)[:, None], rows, torch.stack(bases))
        blocks = blocks.unflatten(1, cells.shape[2:]).unflatten(-1, (3, BLOCK, BLOCK))
        return blocks.permute(0, 3, 1, 4, 2, 5).flatten(-2).flatten(-3, -2)

    def _frame_basis(self, frame: int) -> tuple[Float[Tensor, "C 192"], Float[Tensor, " 192"]]:
        """Basis and constant of one frame's blocks."""
        if frame == 0:
            return self.first_basis, outside_basis(self.first_mean, self.first_basis)
        place = (frame - 1) % BLOCK
        basis = self.group_basis.unflatten(-1, (3, BLOCK, FIRST_SIZE // 3))[:, :, place].flatten(-2)
        rest = outside_basis(self.group_mean, self.group_basis)
        rest = rest.unflatten(-1, (3, BLOCK, FIRST_SIZE // 3))[:, place].flatten()
        return basis / GROUP_GAIN, rest

    def to_diffusion(self, raw: Float[Tensor, "*batch C T h w"]) -> Float[Tensor, "*batch C T h w"]:
        """Latents in diffusion space: 0.5 (raw - mean) / std."""
        return self.statistics.to_diffusion(raw)

    def from_diffusion(self, z: Float[Tensor, "*batch C T h w"]) -> Float[Tensor, "*batch C T h w"]:
        """Raw latents from diffusion space: (z / 0.5) std + mean."""
        return self.statistics.from_diffusion(z)

    def to_bytes(self) -> bytes:
        """The codec as a safetensors file; equal codecs give equal bytes."""
        return save(self.to_tensors(), metadata={"format": "lyra_ns linear codec 1"})

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything the codec consists of, as `linear_codec_of` takes it."""
        return {
            "first_basis": self.first_basis.contiguous(),
            "first_mean": self.first_mean,
            "group_basis": self.group_basis.contiguous(),
            "group_mean": self.group_mean,
            "latent_mean": self.statistics.mean.contiguous(),
            "latent_std": self.statistics.std.contiguous(),
        }


def load_linear_codec(path: Path | None = None) -> LinearCodec:
    """The codec in `path`, or the one that ships with the package; FileNotFoundError or ValueError."""
    path = path or Path(str(files("lyra_ns.weights").joinpath("linear_codec.safetensors")))
    if not path.is_file():
        raise FileNotFoundError(
            f"linear codec {path} does not exist: write it with `python -m training.linear_codec`"
        )
    try:
        return linear_codec_of(load_file(path))
    except (SafetensorError, KeyError) as error:
        raise ValueError(
            f"{path} is not a linear codec ({error}): write it again with `python -m training.linear_codec`"
        ) from error


def linear_codec_of(tensors: dict[str, Tensor]) -> LinearCodec:
    """The codec that consists of these tensors; KeyError if one is missing."""
    return LinearCodec(
        first_basis=tensors["first_basis"],
        first_mean=tensors["first_mean"],
        group_basis=tensors["group_basis"],
        group_mean=tensors["group_mean"],
        statistics=LatentStatistics(tensors["latent_mean"], tensors["latent_std"], repeat_last=True),
    )


def blocks_of_video(
    video: Float[Tensor, "N 3 L H W"],
) -> tuple[Float[Tensor, "N 1 h w 192"], Float[Tensor, "N groups h w 1536"]]:
    """The blocks of the first frame and of the groups of 8 frames behind it."""
    first = video[:, :, 0].unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))
    first = first.permute(0, 2, 4, 1, 3, 5).flatten(-3)[:, None]
    num_videos, _, num_frames, height, width = video.shape
    num_groups, rows, columns = (num_frames - 1) // BLOCK, height // BLOCK, width // BLOCK
    groups = video[:, :, 1:].reshape(num_videos, 3, num_groups, BLOCK, rows, BLOCK, columns, BLOCK)
    return first, groups.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(-4)


def video_of_blocks(
    first: Float[Tensor, "N 1 h w 192"], groups: Float[Tensor, "N groups h w 1536"]
) -> Float[Tensor, "N 3 L H W"]:
    """The video whose blocks these are (inverse of `blocks_of_video`)."""
    num_videos, num_groups, rows, columns, _ = groups.shape
    shape = (num_videos, 3, num_groups * BLOCK + 1, rows * BLOCK, columns * BLOCK)
    video = torch.empty(shape, dtype=groups.dtype, device=groups.device)
    # Written through a view with the axes of blocks, so that every number is moved once.
    view = video.unflatten(-1, (columns, BLOCK)).unflatten(-3, (rows, BLOCK))
    view[:, :, 0] = first[:, 0].unflatten(-1, (3, BLOCK, BLOCK)).permute(0, 3, 1, 4, 2, 5)
    groups = groups.unflatten(-1, (3, BLOCK, BLOCK, BLOCK)).permute(0, 4, 1, 5, 2, 6, 3, 7)
    view[:, :, 1:].unflatten(2, (num_groups, BLOCK)).copy_(groups)
    return video


def outside_basis(block: Float[Tensor, " D"], basis: Float[Tensor, "C D"]) -> Float[Tensor, " D"]:
    """The part of a block that the basis cannot express, which decoding adds to every block."""
    return block - (basis @ block) @ basis
