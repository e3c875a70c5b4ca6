"""Foreground masking: what is seen through the gap between a near thing and the far side is unknown.

Where depth jumps, a moved camera looks through the torn silhouette. What is splatted there from behind may in
truth be hidden by the near thing's unseen side, so it is called a hole. The gap is closed by a sheet of
triangles over the unreliable pixels (docs/reference/gen3c.md, "Foreground masking"). Shape letters:
B images, H W image, h w grid.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from lyra_ns.generation.cache.splat import NEAREST_DEPTH
from lyra_ns.generation.cache.triangles import nearest_triangle_depth

STRIDE = 4
"""Pixels from one corner of the sheet to the next."""


def sheet_depth(
    positions: Float[Tensor, "B 3 h w"],
    known: Bool[Tensor, "B h w"],
    torn: Bool[Tensor, "B h w"],
    size: tuple[int, int],
) -> Float[Tensor, "B H W"]:
    """z-depth of the sheet that spans the torn pixels, in images of `size`; infinite where there is none.

    `positions` are those of `moved_pixels`. Triangles with a corner at unknown depth or not in front of the
    camera are left out.
    """
    corners, image = _sheet(positions, known, torn)
    return nearest_triangle_depth(corners, image, len(positions), size)


def _sheet(positions: Tensor, known: Tensor, torn: Tensor) -> tuple[Tensor, Tensor]:
    """Corners [N, 3, 3] and image [N] of two triangles for each grid cell that touches a torn pixel."""
    grid = (positions.shape[2] // STRIDE, positions.shape[3] // STRIDE)
    if min(grid) < 2:
        return positions.new_zeros(0, 3, 3), torch.zeros(0, dtype=torch.long, device=positions.device)
    # Homogeneous positions are linear in the points, so their mean is the position of the mean point.
    vertices = functional.interpolate(positions, size=grid, mode="bilinear", align_corners=False)
    whole = functional.interpolate(
        known[:, None].to(positions.dtype), size=grid, mode="bilinear", align_corners=False
    )[:, 0]
    usable = (whole > 1 - 1e-4) & (vertices[:, 2] > NEAREST_DEPTH)
    touched = functional.interpolate(torn[:, None].to(positions.dtype), size=grid, mode="nearest")[:, 0] > 0
    image, row, column = (_any_corner(touched)).nonzero().unbind(1)
    corners = torch.stack([vertices[image, :, row + y, column + x] for y, x in _CELL], 1)
    fits = torch.stack([usable[image, row + y, column + x] for y, x in _CELL], 1)
    triangles = torch.cat([corners[:, list(three)] for three in _TRIANGLES])
    drawn = torch.cat([fits[:, list(three)].all(1) for three in _TRIANGLES])
    return triangles[drawn], image.repeat(len(_TRIANGLES))[drawn]


_CELL = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Row and column of a cell's corners."""
_TRIANGLES = ((0, 1, 2), (1, 3, 2))
"""Corners of a cell's two triangles."""


def _any_corner(touched: Tensor) -> Tensor:
    """[B, h-1, w-1] where any of a cell's four corners is touched."""
    in_rows = touched[:, :-1] | touched[:, 1:]
    return in_rows[:, :, :-1] | in_rows[:, :, 1:]
