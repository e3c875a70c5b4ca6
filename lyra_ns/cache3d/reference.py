"""The warp of one frame written as it is defined: the truth for `splat`, and what its speed is compared to.

Shape letters: H W image.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lyra_ns.cache3d.splat import (
    NEAREST_DEPTH,
    PIXEL_CENTRE,
    ROUNDING_PIXELS,
    SplatSettings,
    Splatted,
    unproject,
)
from lyra_ns.cameras import CameraPath, project


def plain_warp(
    rgb: Float[Tensor, "3 H W"],
    depth: Float[Tensor, "H W"],
    usable: Bool[Tensor, "H W"],
    source: CameraPath,
    target: CameraPath,
    farthest: Float[Tensor, ""],
    settings: SplatSettings,
) -> Splatted:
    """One frame's usable pixels, unprojected from one camera and projected into another; B is 1.

    Arguments as in `splat`; `source` and `target` have no leading axes.
    """
    pixels, z = project(unproject(depth, source)[usable], target)
    values = torch.cat([rgb[:, usable].T, z[:, None]], 1)
    in_front = z > NEAREST_DEPTH
    pixels, z, values = pixels[in_front] - PIXEL_CENTRE, z[in_front], values[in_front]
    nearest = pixels.round()
    pixels = torch.where((pixels - nearest).abs() < ROUNDING_PIXELS, nearest, pixels)
    index, share, point = _shares(pixels, target.height, target.width)
    if settings.occlusion == "soft":
        share = share * torch.exp(-settings.sharpness * torch.log1p(z) / torch.log1p(farthest))[point]
    else:
        surface = z.new_full((target.height * target.width,), torch.inf)
        surface.scatter_reduce_(0, index, z[point], "amin")
        share = share * (z[point] <= surface[index] * (1 + settings.tolerance))
    sums = z.new_zeros(target.height * target.width, 5)
    sums.index_add_(0, index, share[:, None] * torch.cat([values, torch.ones_like(z)[:, None]], 1)[point])
    sums = sums.T.reshape(5, 1, target.height, target.width)
    mask = sums[4] > 0
    mixed = torch.where(mask, sums[:4] / sums[4], 0.0)
    return Splatted(mixed[:3].movedim(0, 1), mask, mixed[3])


def _shares(pixels: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Index in the flattened image, share and point of everything that falls into the image."""
    parts = []
    for down in (0, 1):
        for across in (0, 1):
            corner = pixels.floor() + pixels.new_tensor([across, down])
            share = (1 - (pixels - corner).abs()).prod(1)
            limits = pixels.new_tensor([width, height])
            point = ((corner >= 0) & (corner < limits)).all(1).logical_and(share > 0).nonzero()[:, 0]
            x, y = corner[point].long().unbind(1)
            parts.append((y * width + x, share[point], point))
    index, share, point = (torch.cat(part) for part in zip(*parts, strict=True))
    return index, share, point
