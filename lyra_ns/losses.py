"""Training losses: pure functions of tensors and one configuration that weighs them.

Nothing here waits for the GPU: no value is read back, no loop runs over images and no shape depends on data.

Shape letters: B scenes, M target views, V trajectories, L frames, G Gaussians, P pixels, H W image, h w grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from lyra_ns.cameras import CameraPath, RayGrid
from lyra_ns.gaussians import Gaussians
from lyra_ns.rendering.types import Rendered

ImageDistance = Callable[[Tensor, Tensor], Tensor]
"""Distance [N] of images [N, 3, H, W] in 0 to 1, such as a `PerceptualDistance`."""
DEPTH_SPREAD_RANGE = (1e-3, 1e3)
"""Bounds of the mean deviation by which depths are divided (docs/reference/lyra_training.md, "Losses")."""
SHORTEST_DISTANCE = 1e-6
"""Distances are kept above it before their logarithm is taken."""


@dataclass
class LossConfig:
    """Weights of the loss terms, 0 = off. Defaults are the official ones.

    Source: docs/reference/lyra_training.md, "Losses".
    """

    mse: float = 1.0
    """Weight of the mean squared colour error."""
    lpips: float = 0.5
    """Weight of the perceptual distance."""
    lpips_net: Literal["vgg", "alex"] = "vgg"
    """Trunk of the perceptual distance; alex is about ten times cheaper and ships with this package."""
    lpips_weights: Path | None = None
    """State dict of that trunk as torchvision or lpips saves it; None: vgg is downloaded by torchvision."""
    depth: float = 0.05
    """Weight of the scale-invariant depth error."""
    opacity: float = 0.1
    """Weight of the opacity penalty, which makes pruning harmless."""
    parity: bool = False
    """Use the official formulas of the depth and opacity terms, defects included."""
    warm_start_distance: float = 1.0
    """Weight of the log-distance error of single Gaussians in the attribute warm start."""
    warm_start_rgb: float = 2.0
    """Weight of the colour error of single Gaussians in the attribute warm start."""

    attributes: float = 0.0
    """Weight of the warm start's errors after it, so that geometry stays tied to the depth (stabiliser)."""

    @property
    def penalises_pruned_opacities(self) -> bool:
        """Whether the opacity term is meant for the Gaussians that pruning kept (official) or for all."""
        return self.parity


def mse_loss(rgb: Float[Tensor, "*any"], target_rgb: Float[Tensor, "*any"]) -> Float[Tensor, ""]:
    """Mean squared error of colours."""
    return functional.mse_loss(rgb, target_rgb)


def depth_loss(
    depth: Float[Tensor, "*batch M H W"], target_depth: Float[Tensor, "*batch M H W"], parity: bool = False
) -> Float[Tensor, ""]:
    """Smooth L1 error of depths, each image normalised by its own median and mean deviation.

    Pixels whose target is 0, negative or not finite do not count; with none left the loss is 0. Scenes weigh
    alike, so that processes which share a batch find its loss. The official formula (`parity`) takes the
    median with those pixels as zeros and the mean over all pixels (docs/reference/lyra_training.md,
    "Losses").
    """
    target = target_depth.flatten(-2)
    valid = torch.isfinite(target) & (target > 0)
    target = torch.where(valid, target, 0.0)
    counted = torch.ones_like(valid) if parity else valid
    predicted = torch.where(valid, depth.flatten(-2), 0.0)
    error = functional.smooth_l1_loss(
        _normalised_depth(predicted, valid, counted),
        _normalised_depth(target, valid, counted),
        reduction="none",
    )
    return _mean_by_scene(error.flatten(-2), counted.flatten(-2))


def _mean_by_scene(error: Float[Tensor, "*batch P"], counted: Bool[Tensor, "*batch P"]) -> Float[Tensor, ""]:
    """Mean over the scenes of each one's mean error over what counts, which is 0 where nothing does."""
    return (error.sum(-1) / counted.sum(-1).clamp(min=1)).mean()


def _normalised_depth(
    depth: Float[Tensor, "*batch P"], valid: Bool[Tensor, "*batch P"], in_median: Bool[Tensor, "*batch P"]
) -> Float[Tensor, "*batch P"]:
    """(depth - median) / mean deviation per image, 0 where not valid."""
    centred = torch.where(valid, depth - masked_median(depth, in_median), 0.0)
    num_valid = valid.sum(-1, keepdim=True).clamp(min=1)
    spread = (centred.abs().sum(-1, keepdim=True) / num_valid).clamp(*DEPTH_SPREAD_RANGE)
    return centred / spread


def masked_median(
    values: Float[Tensor, "*batch P"], mask: Bool[Tensor, "*batch P"]
) -> Float[Tensor, "*batch 1"]:
    """Lower median over the last axis of the values under the mask; 0 where the mask is empty.

    By a stable sort: `nanmedian` has no deterministic CUDA form, and indexing by the mask stalls the GPU.
    """
    order = torch.where(mask, values.detach(), torch.inf).argsort(dim=-1, stable=True)
    num = mask.sum(-1, keepdim=True)
    middle = order.gather(-1, (num - 1).clamp(min=0) // 2)
    return torch.where(num > 0, values.gather(-1, middle), 0.0)


def opacity_loss(opacities: Float[Tensor, "*any"], parity: bool = False) -> Float[Tensor, ""]:
    """Mean opacity. The official formula (`parity`) puts activated opacities through a second sigmoid."""
    return (torch.sigmoid(opacities) if parity else opacities).mean()


def perceptual_loss(
    rgb: Float[Tensor, "*batch H W 3"],
    target_rgb: Float[Tensor, "*batch H W 3"],
    perceptual: ImageDistance,
) -> Float[Tensor, ""]:
    """Mean perceptual distance over all images."""
    return perceptual(_as_images(rgb), _as_images(target_rgb)).mean()


def _as_images(rgb: Float[Tensor, "*batch H W 3"]) -> Float[Tensor, "N 3 H W"]:
    return rgb.flatten(0, -4).movedim(-1, 1)


def reconstruction_losses(
    rendered: Rendered,
    target_rgb: Float[Tensor, "*batch M H W 3"],
    target_depth: Float[Tensor, "*batch M H W"] | None,
    opacities: Float[Tensor, "*batch G"],
    config: LossConfig,
    perceptual: ImageDistance | None = None,
) -> dict[str, Tensor]:
    """Weighted terms of the loss by name (mse, lpips, depth, opacity); their sum is the loss.

    `opacities` are activated and those before pruning, after it when `config.penalises_pruned_opacities`.
    ValueError if a term has a weight but not what it needs.
    """
    terms = {}
    if config.mse:
        terms["mse"] = config.mse * mse_loss(rendered.rgb, target_rgb)
    if config.lpips:
        if perceptual is None:
            raise ValueError(
                "the lpips weight is not 0 but no perceptual distance was given: pass load_lpips(net)"
            )
        terms["lpips"] = config.lpips * perceptual_loss(rendered.rgb, target_rgb, perceptual)
    if config.depth:
        if target_depth is None:
            raise ValueError("the depth weight is not 0 but the targets have no depth: set it to 0")
        terms["depth"] = config.depth * depth_loss(rendered.depth, target_depth, config.parity)
    if config.opacity:
        terms["opacity"] = config.opacity * opacity_loss(opacities, config.parity)
    return terms


def warm_start_loss(
    gaussians: Gaussians,
    rays: RayGrid,
    input_depth: Float[Tensor, "B V L h w"],
    input_rgb: Float[Tensor, "B V L h w 3"],
    cameras: CameraPath,
    config: LossConfig | None = None,
) -> Float[Tensor, ""]:
    """Error of each Gaussian against the input pixel it stands for: L1 of log distance and L1 of colour.

    The warm start of docs/reference/small_scale.md, "Stabilisers". `gaussians` [B, G] are unpruned, in the
    order trajectory, frame, row, column of `rays` [B, V, L, h, w]; `input_depth` is z-depth, 0 where unknown.
    """
    config = LossConfig() if config is None else config
    cells = rays.flatten_cells()
    along_ray = ((gaussians.means - cells.origins[:, 0]) * cells.directions[:, 0]).sum(-1)
    distance = distance_along_rays(input_depth, rays, cameras).flatten(1)
    known = torch.isfinite(distance) & (distance > 0)
    wanted = torch.where(known, distance, 1.0).clamp(min=SHORTEST_DISTANCE)
    log_error = along_ray.clamp(min=SHORTEST_DISTANCE).log() - wanted.log()
    distance_error = _mean_by_scene(torch.where(known, log_error.abs(), 0.0), known)
    rgb_error = (gaussians.rgb - input_rgb.flatten(1, -2)).abs().mean()
    return config.warm_start_distance * distance_error + config.warm_start_rgb * rgb_error


def distance_along_rays(
    depth: Float[Tensor, "*batch h w"], rays: RayGrid, cameras: CameraPath
) -> Float[Tensor, "*batch h w"]:
    """Distance along each ray of the point at the given z-depth."""
    forward = cameras.camera_to_world[..., None, None, :3, 2]
    return depth / (rays.directions * forward).sum(-1)
