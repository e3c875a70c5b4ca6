"""How far a render is from its picture, as a loss.

Shape letters: H W image.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from pytorch_msssim import ssim
from torch import Tensor

from lyra_ns.losses import ImageDistance
from lyra_ns.refinement_config import RefinementConfig
from lyra_ns.refinement_views import RefinementViews
from lyra_ns.rendering.types import Rendered

SMALLEST_ERROR = 1e-10
"""Equal pictures get 100 dB and not infinity."""
SMALLEST_SSIM_SIDE = 11
"""Side of the window of SSIM; smaller pictures go without."""


def photometric_loss(
    seen: Rendered,
    view: RefinementViews,
    config: RefinementConfig,
    perceptual: ImageDistance | None = None,
    lpips: float = 0.0,
) -> Float[Tensor, ""]:
    """Errors summed over the pixels of one view, so that a gradient counts pixels whatever their number.

    Where the view's weight is below 1 the render is mixed with the picture, and gets so much less gradient.
    """
    wanted, found = view.images, seen.rgb
    if view.weight is not None:
        found = torch.lerp(wanted, found, view.weight[..., None])
    ssim_weight = config.ssim if min(wanted.shape[1:3]) >= SMALLEST_SSIM_SIDE else 0.0
    loss = (1 - ssim_weight) * (found - wanted).abs().mean()
    if ssim_weight:
        loss = loss + ssim_weight * (1 - ssim(_first(found), _first(wanted), data_range=1.0))
    if perceptual is not None:
        loss = loss + lpips * perceptual(_first(found).clamp(0, 1), _first(wanted)).mean()
    if view.depth is not None and config.depth:
        loss = loss + config.depth * _depth_error(seen, view)
    return loss * wanted.shape[1] * wanted.shape[2]


def covered_psnr(rgb: Float[Tensor, "M H W 3"], view: RefinementViews) -> Float[Tensor, " M"]:
    """PSNR in dB over the covered pixels of each view; NaN where there are none."""
    error = (rgb.clamp(0, 1) - view.images).square().mean(-1)
    covered = torch.ones_like(error, dtype=torch.bool) if view.covered is None else view.covered
    mean = torch.where(covered, error, 0.0).sum((1, 2)) / covered.sum((1, 2))
    return -10 * mean.clamp(min=SMALLEST_ERROR).log10()


def _first(images: Float[Tensor, "M H W 3"]) -> Float[Tensor, "M 3 H W"]:
    return images.movedim(-1, 1)


def _depth_error(seen: Rendered, view: RefinementViews) -> Float[Tensor, ""]:
    """Mean of |z - d| / d over pixels whose depth d is known, 0 elsewhere; an outlier counts as 1."""
    assert view.depth is not None
    known = view.depth > 0
    error = (seen.depth - view.depth).abs() / torch.where(known, view.depth, 1.0)
    weight = known if view.weight is None else known * view.weight
    return (error.clamp(max=1.0) * weight).mean()
