"""Brings a small map to the size of its photograph so that its edges lie on the photograph's.

Joint bilateral upsampling: J. Kopf et al., "Joint Bilateral Upsampling", SIGGRAPH 2007.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

RADIUS = 2
"""Neighbours on each side, in cells of the small map."""
SPATIAL_SIGMA = 1.0
"""Reach of the weights, in cells of the small map."""
COLOUR_SIGMA = 0.06
"""Difference of colours (root of the summed squares) at which a neighbour counts little."""
LEAST_WEIGHT = 1e-4
"""Share of the purely spatial weight that every neighbour keeps, where no colour matches."""


def upsample_by_colour(
    values: Float[Tensor, "h w"], small: Float[Tensor, "3 h w"], image: Float[Tensor, "3 H W"]
) -> Float[Tensor, "H W"]:
    """`values` at the size of `image`, each the mean of near cells weighed by likeness of colour.

    `small` is the image at the size of the values.
    """
    height, width = image.shape[1:]
    cells = functional.pad(torch.cat([values[None], small])[None], (RADIUS,) * 4, mode="replicate")[0]
    row, row_offset = _nearest_cells(height, values.shape[0], image)
    column, column_offset = _nearest_cells(width, values.shape[1], image)
    total, weights = torch.zeros_like(image[0]), torch.zeros_like(image[0])
    for down in range(2 * RADIUS + 1):
        for right in range(2 * RADIUS + 1):
            near = cells[:, row + down][:, :, column + right]
            distance = (row_offset + down - RADIUS).square()[:, None] + (
                column_offset + right - RADIUS
            ).square()
            likeness = torch.exp((near[1:] - image).square().sum(0) * (-0.5 / COLOUR_SIGMA**2))
            weight = torch.exp(distance * (-0.5 / SPATIAL_SIGMA**2)) * (likeness + LEAST_WEIGHT)
            total += weight * near[0]
            weights += weight
    return total / weights


def _nearest_cells(length: int, num_cells: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """For each pixel along a side the nearest cell, and where that cell's centre lies from it in cells."""
    place = (torch.arange(length, device=like.device, dtype=like.dtype) + 0.5) * (num_cells / length) - 0.5
    nearest = place.round().clamp(0, num_cells - 1)
    return nearest.long(), nearest - place
