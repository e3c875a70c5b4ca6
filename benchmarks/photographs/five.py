"""`generate` at default settings on five photographs: as the photograph shows them, and from beside it.

The photograph's own view becomes right whatever the depth is, so a scene is also seen from 8 and 16 degrees
beside it, where one Gaussian per pixel by the depth that ships says what should be seen.

Shape letters: H W image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks.photographs.eight import mean_distance, pooled_psnr
from benchmarks.photographs.held_out import Picture
from benchmarks.photographs.scenes import MadeScene, PhotographView, SceneMaker
from benchmarks.photographs.views import on_arc, seen
from lyra_ns.evaluation.baselines import COVERED_ALPHA
from lyra_ns.gaussians import Gaussians
from lyra_ns.losses import ImageDistance

ORBIT_DEGREES = (8, 16)
"""Angles of the views beside the photograph, to both sides."""
PER_PIXEL = "one Gaussian per pixel"
"""Way of the rows that others are compared with."""
Row = dict[str, Any]


def five_rows(
    photographs: Mapping[str, Picture], makers: Mapping[str, SceneMaker], perceptual: ImageDistance
) -> list[Row]:
    """A row for each photograph and each way of `makers`, and one for its Gaussians of pixels."""
    rows = []
    for name, picture in photographs.items():
        for way, maker in makers.items():
            rows.append(scene_row(name, way, maker.made(name, picture), perceptual))
            print(rows[-1], flush=True)
        view = next(iter(makers.values())).made(name, picture).view
        rows.append({"photograph": name, "way": PER_PIXEL, **input_scores(view.per_pixel, view, perceptual)})
    return rows


def scene_row(name: str, way: str, scene: MadeScene, perceptual: ImageDistance) -> Row:
    """All numbers of one scene."""
    view = scene.view
    row = {"photograph": name, "way": way, **input_scores(scene.gaussians, view, perceptual)}
    for degrees in ORBIT_DEGREES:
        row |= orbit_scores(scene.gaussians, view, degrees, perceptual)
    height, width = view.rgb.shape[:2]
    kept = scene.crop.share_of(scene.picture)
    return row | {"height": height, "width": width, "kept": kept, "num": scene.gaussians.num, **scene.cost}


def input_scores(gaussians: Gaussians, view: PhotographView, perceptual: ImageDistance) -> Row:
    """Closeness to the photograph from where it was taken."""
    rgb, truth = seen(gaussians, view.camera).rgb, view.rgb[None]
    return {
        "input_psnr": pooled_psnr(rgb, truth),
        "input_lpips": mean_distance(perceptual, rgb, truth),
    }


def orbit_scores(
    gaussians: Gaussians, view: PhotographView, degrees: float, perceptual: ImageDistance
) -> Row:
    """Closeness to one Gaussian per pixel at an angle, the mean of both sides."""
    cameras = [on_arc(view.camera, side * degrees, view.centre_depth) for side in (1, -1)]
    expected = [seen(view.per_pixel, camera) for camera in cameras]
    truth = torch.cat([images.rgb for images in expected])
    covered = torch.cat([images.alpha for images in expected]) > COVERED_ALPHA
    rgb = torch.cat([seen(gaussians, camera).rgb for camera in cameras])
    return {
        f"lpips_{degrees}": mean_distance(perceptual, taken_where(covered, rgb, truth), truth),
        f"covered_{degrees}": covered.float().mean().item(),
    }


def taken_where(
    covered: Bool[Tensor, "M H W"], rgb: Float[Tensor, "M H W 3"], truth: Float[Tensor, "M H W 3"]
) -> Float[Tensor, "M H W 3"]:
    """The images, and the truth outside of what is covered, so that nothing counts there."""
    return torch.where(covered[..., None], rgb, truth)
