"""Plausible colours for what no pixel shows, from its surroundings.

Shape letters: N images, C channels, H W image.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

BACKGROUND_PREFERENCE = 4.0
"""Power of depth in the weight of a neighbour: what appears behind an edge belongs to the far side."""


def fill_holes(
    values: Float[Tensor, "N C H W"], weights: Float[Tensor, "N 1 H W"]
) -> Float[Tensor, "N C H W"]:
    """The values, and where the weight is 0 a smooth continuation of the others by their weights.

    Pull-push: weighted means over ever larger squares, of which a hole takes the finest that saw anything.
    0 where an image has no weight at all.
    """
    return _continued(values, weights)[0]


def background_weights(depth: Float[Tensor, "N 1 H W"]) -> Float[Tensor, "N 1 H W"]:
    """Weights for `fill_holes` that let the far side win; 0 where the depth is unknown (0)."""
    known = torch.isfinite(depth) & (depth > 0)
    depth = torch.where(known, depth, 0.0)
    farthest = depth.amax((2, 3), keepdim=True).clamp(min=torch.finfo(depth.dtype).tiny)
    return (depth / farthest) ** BACKGROUND_PREFERENCE


def _continued(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Values and weights without holes (but where an image has no weight at all)."""
    if max(values.shape[-2:]) == 1:
        return torch.where(weights > 0, values, 0.0), weights
    pooled_weights = _pool(weights)
    coarse, coarse_weights = _continued(_divided(_pool(values * weights), pooled_weights), pooled_weights)
    # Enlarged under the weights too, or the near side would seep into the hole again.
    weights_here = _enlarged(coarse_weights, values)
    values_here = _divided(_enlarged(coarse * coarse_weights, values), weights_here)
    is_hole = weights <= 0
    return torch.where(is_hole, values_here, values), torch.where(is_hole, weights_here, weights)


def _pool(images: Tensor) -> Tensor:
    return functional.avg_pool2d(images, 2, ceil_mode=True)


def _enlarged(images: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(images, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _divided(sums: Tensor, weights: Tensor) -> Tensor:
    return sums / weights.clamp(min=torch.finfo(weights.dtype).tiny)
