"""The plain PyTorch backend: no compiler, any device; slow, with memory bounded by bands of rows."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lyra_ns.rendering.projection import Splats
from lyra_ns.rendering.types import MIN_ALPHA, MIN_TRANSMITTANCE

MAX_PAIRS = 4_000_000
"""(pixel, splat) pairs looked at together; a pair needs some 200 bytes."""


def rasterize(
    splats: Splats, height: int, width: int, max_alpha: float
) -> tuple[Float[Tensor, "H W 4"], Float[Tensor, "H W"]]:
    """Blended colours with z-depth, and transmittance, of one view.

    Repeatable bit by bit on the CPU; on CUDA sums run in any order.
    """
    images, transmittances = [], []
    for first, end in _bands(splats, height):
        band = (splats, first, end, width, max_alpha)
        # A view of several bands is a large one: keep nothing of a band but its pixels.
        whole = (first, end) == (0, height)
        image, transmittance = _blend(*band) if whole else checkpoint(_blend, *band, use_reentrant=False)
        images.append(image)
        transmittances.append(transmittance)
    return torch.cat(images), torch.cat(transmittances)


def _bands(splats: Splats, height: int) -> list[tuple[int, int]]:
    """Rows of the image cut so that no band of several rows has more than MAX_PAIRS pairs."""
    columns = (splats.boxes[:, 1] - splats.boxes[:, 0]).clamp(min=0).long()
    changes = columns.new_zeros(height + 1)
    changes.index_add_(0, splats.boxes[:, 2].long(), columns)
    changes.index_add_(0, splats.boxes[:, 3].long(), -columns)
    bands, first, num_pairs = [], 0, 0
    for row, num_in_row in enumerate(changes.cumsum(0)[:height].tolist()):
        if row > first and num_pairs + num_in_row > MAX_PAIRS:
            bands.append((first, row))
            first, num_pairs = row, 0
        num_pairs += num_in_row
    return [*bands, (first, height)]


def _blend(
    splats: Splats, first_row: int, end_row: int, width: int, max_alpha: float
) -> tuple[Float[Tensor, "rows W 4"], Float[Tensor, "rows W"]]:
    """The rows of one band."""
    num_pixels = (end_row - first_row) * width
    with torch.no_grad():
        splat, pixel = _pairs_in_boxes(splats, first_row, end_row, width)
        reached = _alphas(splats, splat, pixel, first_row, width, max_alpha) >= MIN_ALPHA
        splat, pixel = splat[reached], pixel[reached]
        alphas = _alphas(splats, splat, pixel, first_row, width, max_alpha)
        after = _log_transmittances(alphas, pixel, num_pixels)
        lit = after > torch.tensor(MIN_TRANSMITTANCE, dtype=after.dtype).log().item()
        splat, pixel = splat[lit], pixel[lit]
    alphas = _alphas(splats, splat, pixel, first_row, width, max_alpha)
    after = _log_transmittances(alphas, pixel, num_pixels)
    before = (after - torch.log1p(-alphas.double())).exp().to(alphas.dtype)
    weights = alphas * before
    image = weights.new_zeros(num_pixels, splats.colours.shape[1])
    image = image.index_add(0, pixel, weights[:, None] * splats.colours.index_select(0, splat))
    total = torch.zeros(num_pixels, dtype=torch.float64, device=pixel.device)
    transmittance = total.index_add(0, pixel, torch.log1p(-alphas.double())).exp().to(alphas.dtype)
    return image.unflatten(0, (-1, width)), transmittance.unflatten(0, (-1, width))


def _pairs_in_boxes(
    splats: Splats, first_row: int, end_row: int, width: int
) -> tuple[Int[Tensor, "P"], Int[Tensor, "P"]]:
    """Indices of splat and pixel (within the band) for all pixels in the splats' boxes.

    Sorted by pixel, then from near to far.
    """
    order = splats.depths.argsort(stable=True)
    left, right, top, bottom = splats.boxes[order].long().T
    top, bottom = top.clamp(min=first_row), bottom.clamp(max=end_row)
    columns = (right - left).clamp(min=0)
    counts = columns * (bottom - top).clamp(min=0)
    ranks = torch.arange(len(order), device=order.device).repeat_interleave(counts)
    within = torch.arange(len(ranks), device=order.device) - (counts.cumsum(0) - counts)[ranks]
    row = top[ranks] + within.div(columns[ranks], rounding_mode="floor")
    column = left[ranks] + within.remainder(columns[ranks])
    pixel, by_pixel = ((row - first_row) * width + column).sort(stable=True)
    return order[ranks[by_pixel]], pixel


def _alphas(
    splats: Splats,
    splat: Int[Tensor, "P"],
    pixel: Int[Tensor, "P"],
    first_row: int,
    width: int,
    max_alpha: float,
) -> Float[Tensor, "P"]:
    """How much each splat covers its pixel."""
    centre = splats.centres.index_select(0, splat)
    x = pixel.remainder(width) + 0.5 - centre[:, 0]
    y = pixel.div(width, rounding_mode="floor") + (first_row + 0.5) - centre[:, 1]
    a, b, c = splats.whitenings.index_select(0, splat).unbind(1)
    exponent = 0.5 * ((a * x + b * y).square() + (c * y).square())
    if splats.perspectives is not None:
        u, v, e, f, g = splats.perspectives.index_select(0, splat).unbind(1)
        exponent = exponent / (1 + (u + e * x + 2 * f * y) * x + (v + g * y) * y)
    alphas = splats.opacities.index_select(0, splat) * torch.exp(-exponent)
    # A negative exponent comes from rounding, where d vanishes: nothing can be seen there.
    return torch.where(exponent >= 0, alphas, 0.0).clamp(max=max_alpha)


def _log_transmittances(
    alphas: Float[Tensor, "P"], pixel: Int[Tensor, "P"], num_pixels: int
) -> Float[Tensor, "P"]:
    """Logarithm of the light that passes each pair and those before it in its pixel, in float64.

    A running sum over all pairs, from which the sum before the pixel's first pair is taken away again.
    """
    passed = torch.log1p(-alphas.double()).cumsum(0)
    counts = pixel.bincount(minlength=num_pixels)
    starts = counts.cumsum(0) - counts
    before_pixel = torch.cat([passed.new_zeros(1), passed])[starts]
    return passed - before_pixel.index_select(0, pixel)
