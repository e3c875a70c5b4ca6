"""Metrics and pictures of one evaluation image."""

from __future__ import annotations

import torch
from jaxtyping import Float
from nerfstudio.utils import colormaps
from torch import Tensor

from lyra_ns.evaluation.metrics import psnr, relative_depth_error, ssim
from lyra_ns.perceptual import SMALLEST_SIDE, PerceptualDistance


@torch.no_grad()
def image_metrics(
    rgb: Float[Tensor, "H W 3"],
    true_rgb: Float[Tensor, "H W 3"],
    depth: Float[Tensor, "H W 1"],
    true_depth: Float[Tensor, "H W 1"] | None,
    perceptual: PerceptualDistance | None,
) -> dict[str, float]:
    """psnr, ssim, lpips (with a perceptual distance) and depth_error (where the true depth is known)."""
    image, truth = rgb.movedim(-1, 0)[None], true_rgb.movedim(-1, 0)[None]
    metrics = {"psnr": psnr(rgb[None], true_rgb[None]), "ssim": ssim(rgb[None], true_rgb[None])}
    if perceptual is not None and min(rgb.shape[:2]) >= SMALLEST_SIDE:
        metrics["lpips"] = perceptual(image, truth)
    if true_depth is not None:
        metrics["depth_error"] = relative_depth_error(depth[None, ..., 0], true_depth[None, ..., 0])
    return {name: float(value) for name, value in metrics.items()}


def image_pictures(
    outputs: dict[str, Tensor], true_rgb: Float[Tensor, "H W 3"], true_depth: Float[Tensor, "H W 1"] | None
) -> dict[str, Float[Tensor, "H W2 3"]]:
    """img, truth beside prediction, and depth, by `depth_picture`."""
    return {
        "img": torch.cat([true_rgb, outputs["rgb"]], 1),
        "depth": depth_picture(outputs["depth"], true_depth, outputs["accumulation"]),
    }


def depth_picture(
    depth: Float[Tensor, "H W 1"],
    true_depth: Float[Tensor, "H W 1"] | None,
    accumulation: Float[Tensor, "H W 1"],
) -> Float[Tensor, "H W2 3"]:
    """Depth in colour; beside the true one, on the same range, where it is known."""
    if true_depth is None:
        return colormaps.apply_depth_colormap(depth, accumulation=accumulation)
    known = true_depth[true_depth > 0]
    near, far = (float(known.min()), float(known.max())) if len(known) else (None, None)
    pictures = [
        colormaps.apply_depth_colormap(true_depth, near_plane=near, far_plane=far),
        colormaps.apply_depth_colormap(depth, accumulation=accumulation, near_plane=near, far_plane=far),
    ]
    return torch.cat(pictures, 1)
