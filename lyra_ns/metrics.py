"""Metrics of images and depth maps, one value per image, and their mean and spread.

Shape letters: N images, H W image. Colours are clipped to [0, 1] first (docs/reference/lyra_training.md,
"Metrics").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from lyra_ns.losses import masked_median

SMALLEST_MSE = 1e-10
"""Equal images get 100 dB and not infinity, so that means stay finite."""
SSIM_SIGMA, SSIM_RADIUS = 1.5, 5
"""The Gaussian window: 11 x 11 pixels."""
SSIM_STABILISERS = (0.01**2, 0.03**2)
"""C1 and C2 of the SSIM paper for colours in [0, 1]."""


def psnr(
    rgb: Float[Tensor, "N H W 3"],
    target_rgb: Float[Tensor, "N H W 3"],
    mask: Bool[Tensor, "N H W"] | None = None,
) -> Float[Tensor, " N"]:
    """Peak signal-to-noise ratio in dB, over the pixels of the mask if one is given (NaN if it is empty)."""
    error = (rgb.clamp(0, 1) - target_rgb.clamp(0, 1)).square().mean(-1)
    mask = torch.ones_like(error, dtype=torch.bool) if mask is None else mask
    return -10 * _mean_under(mask, error).clamp(min=SMALLEST_MSE).log10()


def ssim(rgb: Float[Tensor, "N H W 3"], target_rgb: Float[Tensor, "N H W 3"]) -> Float[Tensor, " N"]:
    """Structural similarity, equal to scikit-image's with gaussian_weights, sigma 1.5, win_size 11, range 1.

    ValueError for images smaller than the window.
    """
    window = 2 * SSIM_RADIUS + 1
    if min(rgb.shape[1:3]) < window:
        found = f"{rgb.shape[1]} x {rgb.shape[2]}"
        raise ValueError(f"SSIM needs images of at least {window} x {window} pixels, found {found}")
    # float64: a variance as a difference of squares loses four digits where the image is flat.
    x, y = (image.double().clamp(0, 1).movedim(-1, 1).flatten(0, 1)[:, None] for image in (rgb, target_rgb))
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = (
        _gaussian_mean(image) for image in (x, y, x * x, y * y, x * y)
    )
    # scikit-image takes the sample covariance even under Gaussian weights.
    unbiased = window**2 / (window**2 - 1)
    variance_x, variance_y = unbiased * (mean_xx - mean_x**2), unbiased * (mean_yy - mean_y**2)
    covariance = unbiased * (mean_xy - mean_x * mean_y)
    c1, c2 = SSIM_STABILISERS
    brightness = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (brightness * structure).flatten(1).mean(-1).unflatten(0, (-1, 3)).mean(-1).to(rgb.dtype)


def _gaussian_mean(images: Float[Tensor, "N 1 H W"]) -> Float[Tensor, "N 1 h w"]:
    """Weighted means under the window, where it lies wholly inside."""
    offsets = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, device=images.device, dtype=images.dtype)
    weights = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    weights = (weights / weights.sum())[None, None, None]
    return functional.conv2d(functional.conv2d(images, weights), weights.transpose(2, 3))


def relative_depth_error(
    depth: Float[Tensor, "N H W"], target_depth: Float[Tensor, "N H W"], aligned: bool = False
) -> Float[Tensor, " N"]:
    """Mean of |z - d| / d over the pixels whose true depth d is known; NaN where none is.

    `aligned` scales each predicted map to the true median first, which forgives a wrong scale.
    """
    depth, target = depth.flatten(1), target_depth.flatten(1)
    valid = torch.isfinite(target) & (target > 0)
    target = torch.where(valid, target, 1.0)
    if aligned:
        median = masked_median(depth, valid)
        depth = depth * torch.where(median > 0, masked_median(target, valid) / median, 1.0)
    return _mean_under(valid, (depth - target).abs() / target)


def _mean_under(mask: Bool[Tensor, "N *any"], values: Float[Tensor, "N *any"]) -> Float[Tensor, " N"]:
    mask, values = mask.flatten(1), values.flatten(1)
    return torch.where(mask, values, 0.0).sum(1) / mask.sum(1)


@dataclass(frozen=True)
class MeanAndSpread:
    """Mean and standard deviation of the finite ones of some values."""

    mean: float
    """Mean; NaN without values."""
    std: float
    """Standard deviation around it, sqrt(mean of squares - square of the mean)."""
    num: int
    """How many values were finite."""


def mean_and_spread(values: Float[Tensor, "*any"]) -> MeanAndSpread:
    """Mean, standard deviation (of the values as a whole population) and number of the finite values."""
    finite = values[torch.isfinite(values)].double()
    if len(finite) == 0:
        return MeanAndSpread(float("nan"), float("nan"), 0)
    return MeanAndSpread(finite.mean().item(), finite.std(correction=0).item(), len(finite))
