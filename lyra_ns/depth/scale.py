"""The units of a scene: how predicted depth, the centre of the paths and free camera paths fit together.

MoGe's first version, with which Lyra's data were made, puts what a path turns about near depth 1. Depth of
other origin is brought there by its median, so that the official movement distances keep their meaning.
Source: docs/reference/gen3c.md, "Depth and scale".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.cameras import CameraPath, project
from lyra_ns.depth.base import DepthPrediction

DepthUnits = Literal["auto", "as_predicted", "median_one", "centre_quantile"]
"""auto: as predicted for MoGe v1, else median_one."""
PoseScaleOrigin = Literal["given", "matched", "assumed"]
SKY_DEPTH = 100.0
"""Depth in units of the scene of what an estimator calls infinitely far, as GEN3C has it."""
LEAST_POINTS = 16
"""Fewer pixels with both depths do not fix a scale."""
MAX_SPREAD = 0.3
"""Largest median deviation of the depth ratios from their median, as a share of it."""


@dataclass(frozen=True)
class SceneScale:
    """The units of a scene, as they are recorded beside it."""

    depth_factor: float
    """Predicted depth times this is depth of the scene."""
    centre_depth: float
    """Depth of the point that paths turn about, in units of the scene."""
    pose_scale: float
    """A unit of a free camera path in units of the predicted depth."""
    pose_scale_origin: PoseScaleOrigin
    """Given by the user, matched to depth in the units of the path, or assumed to be 1."""
    num_points: int
    """Pixels that were matched."""
    spread: float
    """Median deviation of their ratios from the median ratio, as a share of it; 0 where none were matched."""
    estimator: str
    """What predicted the depth."""

    @property
    def path_factor(self) -> float:
        """Translations of a free path times this are in units of the scene (`fitted_path`'s pose_scale)."""
        return self.pose_scale * self.depth_factor


def scene_scale(
    prediction: DepthPrediction,
    *,
    units: DepthUnits = "auto",
    centre_quantile: float = 0.5,
    pose_scale: float | Literal["auto"] = "auto",
    path_depth: Float[Tensor, "H W"] | None = None,
) -> SceneScale:
    """The units of a scene from its first depth.

    `path_depth` is depth of the same image in units of a free path (ViPE's, or `depth_of_points` of a
    reconstruction; 0 where unknown). With it an automatic pose scale is the median ratio of the two; without
    it 1 is assumed. ValueError where the two do not agree on a scale.
    """
    known = prediction.depth[prediction.known]
    if not 0 < centre_quantile < 1:
        raise ValueError(f"expected a quantile between 0 and 1 for the centre, found {centre_quantile}")
    if units == "auto":
        units = "as_predicted" if prediction.has_training_units else "median_one"
    depth_factor, centre_depth = 1.0, 1.0
    if units == "median_one":
        depth_factor = 1.0 / float(known.median())
    elif units == "centre_quantile":
        centre_depth = float(_quantile(known, centre_quantile))
    scale, origin, num_points, spread = _pose_scale(prediction, pose_scale, path_depth)
    return SceneScale(depth_factor, centre_depth, scale, origin, num_points, spread, prediction.estimator)


def scene_depth(depth: Float[Tensor, "*any"], scale: SceneScale) -> Float[Tensor, "*any"]:
    """Predicted depth in the units of the scene; what is unknown is taken for sky."""
    return torch.where(depth > 0, depth * scale.depth_factor, SKY_DEPTH)


def depth_of_points(points: Float[Tensor, "n 3"], camera: CameraPath) -> Float[Tensor, "H W"]:
    """z-depth of the nearest point in each pixel of one camera [1], 0 where there is none."""
    pixels, depth = project(points[None].to(camera.camera_to_world), camera)
    column, row = pixels[0].floor().long().unbind(-1)
    depth = depth[0]
    seen = (depth > 0) & (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
    nearest = depth.new_full((camera.height * camera.width,), torch.inf)
    nearest.scatter_reduce_(0, (row * camera.width + column)[seen], depth[seen], "amin")
    return torch.where(nearest.isfinite(), nearest, 0.0).view(camera.height, camera.width)


def _pose_scale(
    prediction: DepthPrediction, wanted: float | Literal["auto"], path_depth: Float[Tensor, "H W"] | None
) -> tuple[float, PoseScaleOrigin, int, float]:
    """Scale, where it comes from, points and spread."""
    if wanted != "auto":
        if not (math.isfinite(wanted) and wanted > 0):
            raise ValueError(f"expected a pose scale above 0, or auto, found {wanted}")
        return float(wanted), "given", 0, 0.0
    if path_depth is None:
        return 1.0, "assumed", 0, 0.0
    if path_depth.shape != prediction.depth.shape:
        raise ValueError(
            f"expected depth of the path at the size of the image ({list(prediction.depth.shape)}), found "
            f"{list(path_depth.shape)}: resize it"
        )
    both = prediction.known & path_depth.isfinite() & (path_depth > 0)
    ratios = (prediction.depth / path_depth)[both]
    if len(ratios) < LEAST_POINTS:
        raise ValueError(
            f"expected at least {LEAST_POINTS} pixels with depth of the path and of the image to match their "
            f"scales, found {len(ratios)}: give the pose scale as a number"
        )
    scale = float(ratios.median())
    spread = float((ratios - scale).abs().median()) / scale
    if spread > MAX_SPREAD:
        raise ValueError(
            f"expected depth of the path and of the image to differ by one factor, found ratios that "
            f"scatter by {spread:.0%} about {scale:.3g}: give the pose scale as a number"
        )
    return scale, "matched", len(ratios), spread


def _quantile(values: Float[Tensor, " n"], share: float) -> Tensor:
    """By sorting, since torch.quantile refuses large images."""
    ordered = values.flatten().sort().values
    return ordered[round(share * (len(ordered) - 1))]
