"""A new depth brought into the scale of the cache: estimators know depth only up to scale and shift.

Source: docs/reference/gen3c.md, "Long videos". As there the fit is affine in inverse depth; instead of
cutting off tenths of the values it weighs residuals, and what it cannot explain does not count. Shape
letters: H W image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LEAST_OVERLAP = 0.01
"""Share of the image that both depths must know."""
NUM_REWEIGHTINGS = 30
FLAT_VARIATION = 1e-3
"""Below this variation of inverse depth, relative to its mean, scale and shift cannot be told apart."""
SMALLEST_RESIDUAL = 1e-6
"""Bounds the weight of a perfect pixel, relative to the mean inverse depth."""


@dataclass(frozen=True)
class InverseDepthFit:
    """1 / known = scale / estimated + shift."""

    scale: float
    """Above 0."""
    shift: float
    """In inverse units of the known depth."""
    residual: float
    """Median of what is left, relative to the mean known inverse depth."""

    def applied(self, depth: Float[Tensor, "H W"], farthest: float | None = None) -> Float[Tensor, "H W"]:
        """The estimated depth in the units of the known one; 0 stays unknown.

        What comes out beyond `farthest` or infinity lies at `farthest`; without one it is unknown.
        """
        inverse = torch.where(depth > 0, self.scale / depth + self.shift, torch.inf)
        beyond = 0.0 if farthest is None else farthest
        least = 0.0 if farthest is None else 1.0 / farthest
        aligned = torch.where(inverse > least, 1.0 / inverse, beyond)
        return torch.where(depth > 0, aligned, 0.0)


def align_inverse_depth(estimated: Float[Tensor, "H W"], known: Float[Tensor, "H W"]) -> InverseDepthFit:
    """The affine map of inverse depth, with the least sum of absolute residuals where both are known (> 0).

    A shift that would need a scale of 0 or less, or that flat depth does not show, is 0: then only the scale
    is fitted. ValueError if the two overlap on less than a hundredth of the image.
    """
    both = (estimated > 0) & (known > 0) & estimated.isfinite() & known.isfinite()
    _check_overlap(both)
    x, y = (1.0 / depth[both].double() for depth in (estimated, known))
    scale, shift = (y / x).median().item(), 0.0
    if bool(x.std() > FLAT_VARIATION * x.mean()):
        affine = _least_absolute(x, y)
        if affine[0] > 0:
            scale, shift = affine
    residual = (scale * x + shift - y).abs().median() / y.mean()
    return InverseDepthFit(scale, shift, residual.item())


def _least_absolute(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Slope and intercept by repeatedly weighted least squares, float64."""
    weights = torch.ones_like(x)
    slope = intercept = 0.0
    for _ in range(NUM_REWEIGHTINGS):
        total = weights.sum()
        mean_x, mean_y = (weights * x).sum() / total, (weights * y).sum() / total
        spread = (weights * (x - mean_x) ** 2).sum()
        slope_now = (weights * (x - mean_x) * (y - mean_y)).sum() / spread
        slope, intercept = slope_now.item(), (mean_y - slope_now * mean_x).item()
        residual = (slope * x + intercept - y).abs()
        weights = 1.0 / residual.clamp(min=SMALLEST_RESIDUAL * float(y.mean()))
    return slope, intercept


def _check_overlap(both: Bool[Tensor, "H W"]) -> None:
    share = both.float().mean().item()
    if share < LEAST_OVERLAP:
        raise ValueError(
            f"expected depth of both on {LEAST_OVERLAP:.0%} of the image at least, found {share:.2%}: the "
            "camera has left what the cache knows, take a shorter path"
        )
