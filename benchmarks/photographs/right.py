"""The real right photograph of the motorcycle, which nothing has seen, from scenes of the left one alone.

A scene of one photograph has no unit of length and a guessed lens, so the distance of the right camera is the
one at which a scene is closest to the right photograph (PSNR); only the shift of the right camera's principal
point is taken from the calibration.

Shape letters: H W image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.photographs.crops import Crop
from benchmarks.photographs.eight import mean_distance, pooled_psnr
from benchmarks.photographs.held_out import Picture
from benchmarks.photographs.scenes import MadeScene, PhotographView, SceneMaker
from benchmarks.photographs.views import per_pixel, seen
from lyra_ns.cache3d.inpaint import background_weights, fill_holes
from lyra_ns.cameras import CameraPath
from lyra_ns.evaluation.photo_check import DISPARITY_OFFSET, load_stereo_photo
from lyra_ns.gaussians import Gaussians
from lyra_ns.losses import ImageDistance

HEIGHT, WIDTH = 160, 256
"""Size at which the right photograph is compared."""
FINE_HEIGHT, FINE_WIDTH = 320, 512
"""Size at which the left photograph becomes one Gaussian per pixel."""
BASELINES = tuple(step / 45 for step in range(0, 16))
"""Distances of the right camera that are tried, in units of the median depth."""
SHOWN_ALPHA = 0.5
"""Below this accumulated opacity a pixel shows the mean colour of the right photograph."""
Row = dict[str, Any]


@dataclass(frozen=True)
class RightPhotograph:
    """The truth."""

    rgb: Float[Tensor, "H W 3"]
    """Its middle at the size of the comparison."""
    principal_shift: float
    """How much farther right its principal point lies, in pixels of that size."""

    @classmethod
    def of_pair(cls) -> RightPhotograph:
        """Cropped like the left one."""
        picture = _as_bytes(load_stereo_photo().right)
        crop = Crop.of_aspect(picture, HEIGHT, WIDTH)
        shift = DISPARITY_OFFSET * WIDTH / picture.shape[1]
        return cls(crop.cut(picture, HEIGHT, WIDTH), shift)

    @cached_property
    def mean_colour(self) -> Float[Tensor, " 3"]:
        """Shown where a scene shows nothing."""
        return self.rgb.mean((0, 1))


def right_rows(
    left: Picture, makers: Mapping[str, SceneMaker], name: str, perceptual: ImageDistance
) -> list[Row]:
    """A row for each way of making a scene of the left photograph, and for what needs no scene."""
    truth = RightPhotograph.of_pair()
    scenes = {way: maker.made(name, left) for way, maker in makers.items()}
    first = next(iter(scenes.values()))
    crop = Crop.of_aspect(left, HEIGHT, WIDTH)
    fine = first.view_of(crop, FINE_HEIGHT, FINE_WIDTH)
    rows = [{"way": "left photograph copied", **_scores(crop.cut(left, HEIGHT, WIDTH), truth, perceptual)}]
    for way, gaussians, view in [
        *((way, scene.gaussians, _compared(scene, crop)) for way, scene in scenes.items()),
        ("one Gaussian per pixel", fine.per_pixel, _compared(first, crop)),
        ("one Gaussian per pixel, measured depth", measured_pixels(fine), _compared(first, crop)),
    ]:
        rows.append({"way": way, **best_baseline(gaussians, view, truth, perceptual)})
        print(rows[-1], flush=True)
    return rows


def _compared(scene: MadeScene, crop: Crop) -> PhotographView:
    return scene.view_of(crop, HEIGHT, WIDTH)


def measured_pixels(view: PhotographView) -> Gaussians:
    """One Gaussian per pixel of the left photograph by its measured depth, whose median is the scene's."""
    depth = load_stereo_photo().depth
    crop = Crop.of_aspect(_as_bytes(depth[..., None]), FINE_HEIGHT, FINE_WIDTH)
    part = depth[crop.top : crop.top + crop.rows, crop.left : crop.left + crop.columns]
    picked = torch.nn.functional.interpolate(
        part[None, None], (FINE_HEIGHT, FINE_WIDTH), mode="nearest-exact"
    )
    filled = fill_holes(picked, background_weights(picked))[0, 0]
    return per_pixel(view.rgb, filled / filled.median() * view.centre_depth, view.camera)


def best_baseline(
    gaussians: Gaussians, view: PhotographView, truth: RightPhotograph, perceptual: ImageDistance
) -> Row:
    """Scores at that one of BASELINES whose image is closest to the right photograph."""
    images = {
        baseline: _image(gaussians, right_camera(view, baseline, truth.principal_shift), truth)
        for baseline in BASELINES
    }
    best = max(images, key=lambda baseline: pooled_psnr(images[baseline], truth.rgb))
    return {**_scores(images[best], truth, perceptual), "baseline": best}


def right_camera(view: PhotographView, baseline: float, principal_shift: float) -> CameraPath:
    """The camera [] so many median depths to the right of the view's."""
    pose = torch.eye(4)
    pose[0, 3] = baseline * view.centre_depth
    intrinsics = view.camera.intrinsics + torch.tensor([0.0, 0.0, principal_shift, 0.0])
    return replace(view.camera, camera_to_world=pose, intrinsics=intrinsics)


def _image(gaussians: Gaussians, camera: CameraPath, truth: RightPhotograph) -> Float[Tensor, "H W 3"]:
    images = seen(gaussians, camera)
    return torch.where(images.alpha[0, ..., None] > SHOWN_ALPHA, images.rgb[0], truth.mean_colour)


def _scores(rgb: Float[Tensor, "H W 3"], truth: RightPhotograph, perceptual: ImageDistance) -> Row:
    return {
        "psnr": pooled_psnr(rgb, truth.rgb),
        "lpips": mean_distance(perceptual, rgb[None], truth.rgb[None]),
    }


def _as_bytes(rgb: Float[Tensor, "H W channels"]) -> Picture:
    return (rgb * 255).round().byte().numpy()
