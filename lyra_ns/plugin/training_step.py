"""Losses and metrics of one training batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lyra_ns.cameras import RayGrid
from lyra_ns.data.types import SceneBatch
from lyra_ns.gaussians import Gaussians
from lyra_ns.losses import LossConfig, reconstruction_losses, warm_start_loss
from lyra_ns.perceptual import PerceptualDistance
from lyra_ns.plugin.errors import DataError
from lyra_ns.rendering.types import Rendered


@dataclass(frozen=True)
class BatchOutputs:
    """What the model computed for a batch."""

    gaussians: Gaussians
    """All Gaussians [B, G]."""
    kept: Gaussians
    """Those that pruning left."""
    rays: RayGrid
    """The ray of each Gaussian, [B, V, L, h, w]."""
    rendered: Rendered | None
    """Images of the target cameras; None in the warm start, which renders nothing."""


def loss_terms(
    outputs: BatchOutputs, batch: SceneBatch, config: LossConfig, perceptual: PerceptualDistance | None
) -> dict[str, Tensor]:
    """Weighted terms of the loss by name; their sum is the loss."""
    if outputs.rendered is None:
        return {"warm_start": _attribute_loss(outputs, batch, config)}
    penalised = outputs.kept if config.penalises_pruned_opacities else outputs.gaussians
    terms = reconstruction_losses(
        outputs.rendered, batch.target_rgb, batch.target_depth, penalised.opacities, config, perceptual
    )
    if config.attributes and batch.input_depth is not None:
        terms["attributes"] = config.attributes * _attribute_loss(outputs, batch, config)
    return terms


def _attribute_loss(outputs: BatchOutputs, batch: SceneBatch, config: LossConfig) -> Tensor:
    assert batch.input_depth is not None
    assert batch.input_rgb is not None
    return warm_start_loss(
        outputs.gaussians, outputs.rays, batch.input_depth, batch.input_rgb, batch.cameras, config
    )


@torch.no_grad()
def metrics_of_batch(outputs: BatchOutputs, batch: SceneBatch) -> dict[str, Tensor]:
    """Mean PSNR of the batch, and counts of the Gaussians."""
    opacities = outputs.gaussians.opacities
    metrics = {
        "gaussian_count": torch.tensor(float(outputs.kept.num)),
        "mean_opacity": opacities.mean(),
        "num_trajectories": torch.tensor(float(len(batch.trajectories[0]))),
    }
    if outputs.rendered is not None:
        error = (outputs.rendered.rgb.clamp(0.0, 1.0) - batch.target_rgb).square()
        metrics["psnr"] = -10.0 * error.mean((-3, -2, -1)).clamp(min=1e-10).log10().mean()
    return metrics


def check_targets(batch: SceneBatch, config: LossConfig, uses_attributes: bool) -> None:
    """DataError if the data lacks what a loss term needs, before the first step."""
    if config.depth and batch.target_depth is None:
        raise DataError(
            f"scene {batch.names[0]} has no depth, which the depth loss needs: "
            "add depth files, or switch it off with --pipeline.model.loss.depth 0"
        )
    if uses_attributes and (batch.input_depth is None or batch.input_rgb is None):
        raise DataError(
            f"scene {batch.names[0]} has no depth or no frames, which the attribute loss needs: "
            "add them, or set --pipeline.model.warm-start-steps 0 --pipeline.model.loss.attributes 0"
        )
