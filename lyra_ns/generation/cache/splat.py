"""Pixels splatted onto other images: each spreads over the four pixels around it, the nearest one wins.

Shape letters: B images, h w source image, H W target image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lyra_ns.generation.cache.geometry import PIXEL_CENTRE

LARGEST_EXPONENT = 80.0
"""exp(-80) is a weight that, times any share, float32 still holds."""
ROUNDING_PIXELS = 1e-3
"""Nearer than this to a pixel's centre means on it: by rounding alone a near point would get a share of its
neighbour, and hide what is far there however small the share."""
NEAREST_DEPTH = 1e-4
"""Points nearer than this, or behind the camera, are not seen."""


@dataclass(frozen=True)
class SplatSettings:
    """How points that land on one pixel are mixed."""

    occlusion: Literal["soft", "hard"] = "soft"
    """`soft` weighs points by exp(-sharpness log(1 + z) / log(1 + farthest)), as GEN3C saw in its training;
    `hard` lets only those count that lie near the nearest one."""
    sharpness: float = 50.0
    """How fast the soft weight falls with depth."""
    tolerance: float = 0.01
    """Hard: a point counts if it is no farther than this share behind the nearest."""

    def __post_init__(self) -> None:
        if self.occlusion not in ("soft", "hard"):
            raise ValueError(f"expected soft or hard as occlusion, found {self.occlusion!r}")
        if self.sharpness <= 0 or self.tolerance < 0:
            raise ValueError(
                f"expected a sharpness above 0 and a tolerance of 0 or more, found {self.sharpness} and "
                f"{self.tolerance}"
            )


@dataclass(frozen=True)
class Splatted:
    """What arrived; 0 where nothing did."""

    rgb: Float[Tensor, "B 3 H W"]
    """Colours, mixed by weight."""
    mask: Bool[Tensor, "B H W"]
    """Where anything arrived."""
    depth: Float[Tensor, "B H W"]
    """z-depths, mixed by the same weights."""


def splat(
    rgb: Float[Tensor, "B 3 h w"],
    positions: Float[Tensor, "B 3 h w"],
    usable: Bool[Tensor, "B h w"],
    size: tuple[int, int],
    farthest: Float[Tensor, ""],
    settings: SplatSettings,
) -> Splatted:
    """Images of `size` (H, W) onto which the usable pixels fall.

    `positions` are homogeneous (u z, v z, z) as from `moved_pixels`. `farthest` is the depth that scales the
    soft weights: one per scene, or the picture would depend on how frames are batched
    (docs/reference/gen3c.md, "Warping").
    """
    landed = _landed(positions, usable, size)
    weight = _soft_weight(landed.depth, farthest, settings.sharpness)
    footprint: Iterable[tuple[Tensor, Tensor]] = _footprint(landed, size)
    surface = None
    if settings.occlusion == "hard":
        footprint = list(footprint)  # Read twice.
        surface = _nearest_depth(landed.depth, footprint, size)
    values = [*(channel.flatten() for channel in rgb.unbind(1)), landed.depth.flatten()]
    sums = positions.new_zeros(len(values) + 1, landed.depth.shape[0] * size[0] * size[1])
    for index, share in footprint:
        if surface is None:
            share = share * weight
        else:
            share = share * (landed.depth.flatten() <= surface[index] * (1 + settings.tolerance))
        for total, value in zip(sums, values, strict=False):
            total.scatter_add_(0, index, share * value)
        sums[-1].scatter_add_(0, index, share)
    return _mixed(sums.reshape(len(sums), -1, *size))


def _mixed(sums: Tensor) -> Splatted:
    mask = sums[-1] > 0
    mixed = torch.where(mask, sums[:-1] / sums[-1], 0.0)
    return Splatted(mixed[:3].movedim(0, 1), mask, mixed[3])


@dataclass(frozen=True)
class _Landed:
    """Where points fall: what is outside or unseen has `visible` False and a harmless place."""

    lower: Tensor
    """[2, B, h w] column and row of the upper left of four pixels, integers."""
    fraction: Tensor
    """[2, B, h w] share of the right and of the lower pixels."""
    depth: Tensor
    """[B, h w]; 1 where not visible, so that no weight becomes NaN."""
    visible: Tensor
    """[B, h w]"""


def _landed(positions: Tensor, usable: Tensor, size: tuple[int, int]) -> _Landed:
    positions = positions.flatten(2).movedim(1, 0)
    depth = positions[2]
    visible = usable.flatten(1) & (depth > NEAREST_DEPTH)
    depth = torch.where(visible, depth, 1.0)
    # Far outside is outside: without the bounds a huge quotient would not fit an integer.
    limit = float(max(size) + 1)
    pixels = (positions[:2] / depth - PIXEL_CENTRE).clamp(-2.0, limit)
    nearest = pixels.round()
    pixels = torch.where((pixels - nearest).abs() < ROUNDING_PIXELS, nearest, pixels)
    lower = pixels.floor()
    return _Landed(lower.long(), pixels - lower, depth, visible)


def _footprint(landed: _Landed, size: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
    """For each of the four pixels: its index in the flattened [B, H, W], and the point's share of it."""
    (height, width), (column, row) = size, landed.lower
    images = torch.arange(len(column), device=column.device)[:, None] * (height * width)
    # A point that misses adds zero somewhere: a place of its own, or all would queue for one address.
    elsewhere = images + torch.arange(column.shape[1], device=column.device) % (height * width)
    (right, below), (left, above) = landed.fraction, 1 - landed.fraction
    for down, vertical in ((0, above), (1, below)):
        for across, horizontal in ((0, left), (1, right)):
            x, y = column + across, row + down
            hits = landed.visible & (x >= 0) & (x < width) & (y >= 0) & (y < height)
            index = torch.where(hits, images + y * width + x, elsewhere)
            yield index.flatten(), torch.where(hits, vertical * horizontal, 0.0).flatten()


def _soft_weight(depth: Tensor, farthest: Tensor, sharpness: float) -> Tensor:
    exponent = sharpness * torch.log1p(depth) / torch.log1p(farthest)
    return torch.exp(-exponent.clamp(max=LARGEST_EXPONENT)).flatten()


def _nearest_depth(
    depth: Tensor, footprint: Iterable[tuple[Tensor, Tensor]], size: tuple[int, int]
) -> Tensor:
    """[B H W] depth of the nearest point that touches each pixel, infinite without any."""
    nearest = depth.new_full((len(depth) * size[0] * size[1],), torch.inf)
    for index, share in footprint:
        nearest.scatter_reduce_(0, index, torch.where(share > 0, depth.flatten(), torch.inf), "amin")
    return nearest
