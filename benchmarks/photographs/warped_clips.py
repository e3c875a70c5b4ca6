"""Clips from one photograph: its pixels as Gaussians by the depth that ships, drawn along Lyra's six paths.

Everything here is fixed, so that decoders of different days are judged by the same frames (as long as the
depth that ships is the same).

Shape letters: V paths, L frames, H W image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from benchmarks.photographs.crops import Crop
from benchmarks.photographs.held_out import Picture
from benchmarks.photographs.pack import unpacked
from lyra_ns.cache3d.inpaint import background_weights, fill_holes
from lyra_ns.camera_paths import TRAJECTORIES, trajectory_path
from lyra_ns.cameras import CameraPath, stack_cameras
from lyra_ns.data.layout import READING_ORDER
from lyra_ns.depth.base import DepthEstimator
from lyra_ns.depth.small import load_small_depth
from lyra_ns.evaluation.baselines import pixel_gaussians
from lyra_ns.gaussians import Gaussians
from lyra_ns.rendering import RenderSettings, render

HEIGHT, WIDTH, NUM_FRAMES = 160, 256, 17
"""Size of the clips."""
FINER = 2
"""The photograph has so many times their pixels on a side, or splatting would blur them."""
FOCAL_SHARE = 0.9
"""Focal length in widths of the image."""
UNIT = 4.5
"""Median depth in units of length."""
RANGE_SHARE = 0.5
"""Where in the official ranges of distances the paths lie."""
NEAR_QUANTILE, NEAR_SHARE = 0.05, 0.7
"""Paths are shorter where this quantile of the depth is nearer than this share of its median."""
PIXEL_OPACITY = 0.98
"""Opacity of a pixel's Gaussian."""
KNOWN_ALPHA, LEAST_ALPHA = 0.8, 0.05
"""A pixel is filled where it is less opaque than the first; white is taken out of it down to the second."""
SETTINGS = RenderSettings(response="ewa")
"""How everything is drawn; on white."""


@dataclass(frozen=True)
class WarpedClips:
    """The clips of a photograph."""

    frames: UInt8[Tensor, "V L 3 H W"]
    """Colours, holes filled."""
    cameras: CameraPath
    """The paths [V, L], in the frame of the photograph's camera."""


def warped_clips(
    photographs: Mapping[str, bytes], device: torch.device | str = "cpu"
) -> dict[str, WarpedClips]:
    """Clips of each packed photograph by its name, made and kept on `device`."""
    estimator = load_small_depth(device)
    return {name: _clips_of(unpacked(jpeg), estimator, device) for name, jpeg in photographs.items()}


@torch.no_grad()
def _clips_of(picture: Picture, estimator: DepthEstimator, device: torch.device | str) -> WarpedClips:
    height, width = FINER * HEIGHT, FINER * WIDTH
    rgb = Crop.of_aspect(picture, height, width).cut(picture, height, width).to(device)
    source = _camera(height, width).to(device)
    depth = estimator.predict(rgb.movedim(-1, 0), source.intrinsics).depth
    depth = depth / depth.median() * UNIT
    pixels = pixel_gaussians(rgb, depth, source)
    pixels = replace(pixels, opacities=torch.full_like(pixels.opacities, PIXEL_OPACITY))
    cameras = _six_paths(depth).to(device)
    frames = torch.stack([_frames(pixels, cameras[view]) for view in range(cameras.shape[0])])
    return WarpedClips(frames, cameras)


def _camera(height: int, width: int) -> CameraPath:
    """The photograph's camera []."""
    focal = FOCAL_SHARE * width
    intrinsics = torch.tensor([focal, focal, width / 2, height / 2])
    return CameraPath(torch.eye(4), intrinsics, torch.tensor(0.0), height, width)


def _six_paths(depth: Float[Tensor, "H W"]) -> CameraPath:
    """Paths [V, L] in the order in which decoders read them, shorter where something is near."""
    near = float(depth.flatten().quantile(NEAR_QUANTILE)) / UNIT
    paths = []
    for trajectory in READING_ORDER:
        low, high = TRAJECTORIES[trajectory].distance_range
        path = trajectory_path(
            trajectory,
            (low + (high - low) * RANGE_SHARE) * min(1.0, near / NEAR_SHARE),
            centre_depth=UNIT,
            num_frames=NUM_FRAMES,
            intrinsics=_camera(HEIGHT, WIDTH).intrinsics,
            height=HEIGHT,
            width=WIDTH,
        )
        paths.append(path)
    return stack_cameras(paths)


def _frames(pixels: Gaussians, path: CameraPath) -> UInt8[Tensor, "L 3 H W"]:
    """What a path [L] sees, white taken out of thin places and holes filled from behind."""
    seen = render(pixels, path, SETTINGS)
    alpha = seen.alpha[:, None]
    rgb = (seen.rgb.movedim(-1, 1) - (1 - alpha)) / alpha.clamp(min=LEAST_ALPHA)
    is_known = alpha > KNOWN_ALPHA
    weights = background_weights(torch.where(is_known, seen.depth[:, None], 0.0)) * is_known
    return (fill_holes(rgb.clamp(0, 1), weights).clamp(0, 1) * 255).round().byte()
