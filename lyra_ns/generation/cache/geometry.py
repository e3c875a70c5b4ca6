"""Pixels with depth moved between cameras, and which depths can be trusted.

A z-depth is known where it is finite and above 0. Shape letters: B pairs of a source and a target, H W image.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from lyra_ns.cameras import CameraPath, cell_centres, ray_grid

PIXEL_CENTRE = 0.5
"""Where this package has the centre of the first pixel."""
OFFICIAL_PIXEL_CENTRE = 0.0
"""Where GEN3C's warping has it (docs/reference/gen3c.md, "Warping")."""
WINDOW = 5
"""Side of the square, in pixels, over which a depth must be steady to be reliable."""


def with_pixel_centre(cameras: CameraPath, pixel_centre: float) -> CameraPath:
    """Cameras that do here what `cameras` mean where the first pixel's centre lies at `pixel_centre`."""
    shift = cameras.intrinsics.new_tensor([0.0, 0.0, 1.0, 1.0]) * (PIXEL_CENTRE - pixel_centre)
    return replace(cameras, intrinsics=cameras.intrinsics + shift)


def known_depth(depth: Float[Tensor, "*batch"]) -> Bool[Tensor, "*batch"]:
    """Where the depth is known: finite and above 0."""
    return torch.isfinite(depth) & (depth > 0)


def bounded_depth(depth: Float[Tensor, "*batch"], farthest: float | None) -> Float[Tensor, "*batch"]:
    """The depth, 0 where unknown.

    What lies beyond `farthest`, the infinitely far included, is moved there; without `farthest` infinitely
    far means unknown.
    """
    if farthest is not None:
        depth = depth.clamp(max=farthest)
    return torch.where(known_depth(depth), depth, 0.0)


def reliable_depth(depth: Float[Tensor, "B H W"], threshold: float) -> Bool[Tensor, "B H W"]:
    """Where the known depth is steady: (max - min) / mean over a square of 5 x 5 below `threshold`.

    `depth` is 0 where unknown, and that counts as a depth here: the neighbours of unknown pixels are
    unreliable. As in GEN3C the mean counts zeros beyond the image's border, which is stricter there
    (docs/reference/gen3c.md, "Warping"). A threshold of 1 or more lets every known depth pass.
    """
    known = depth > 0
    if threshold >= 1:
        return known
    images, padding = depth[:, None], WINDOW // 2
    largest = functional.max_pool2d(images, WINDOW, 1, padding)
    smallest = -functional.max_pool2d(-images, WINDOW, 1, padding)
    mean = functional.avg_pool2d(images, WINDOW, 1, padding)
    return known & ((largest - smallest) / (mean + 1e-6) < threshold)[:, 0]


def unproject(depth: Float[Tensor, "*batch H W"], cameras: CameraPath) -> Float[Tensor, "*batch H W 3"]:
    """World points of the pixels at their z-depths; the camera's centre where the depth is 0."""
    rays = ray_grid(cameras, *depth.shape[-2:])
    axis = cameras.camera_to_world[..., None, None, :3, 2]
    distance = depth / (rays.directions * axis).sum(-1)
    return rays.origins + rays.directions * distance[..., None]


def moved_pixels(
    depth: Float[Tensor, "B H W"], sources: CameraPath, targets: CameraPath
) -> Float[Tensor, "B 3 H W"]:
    """Homogeneous image positions (u z, v z, z) in the target cameras of source pixels at their z-depths.

    The same as projecting the unprojected points, without the points: between two pinholes a pixel moves by
    one matrix and, over its depth, one vector. These are made in float64, so that equal cameras leave every
    pixel at its place.
    """
    matrix, vector = _pixel_motion(sources, targets)
    rows, columns = (cell_centres(num, depth) for num in depth.shape[-2:])
    matrix, vector = matrix.to(depth.dtype)[..., None, None], vector.to(depth.dtype)[..., None, None]
    # [B, 3, H, 1] + [B, 3, 1, W]: the image of the pixel grid is a sum of a column and a row.
    direction = (matrix[:, :, 1] * rows[:, None] + matrix[:, :, 2]) + matrix[:, :, 0] * columns
    return direction.mul_(depth[:, None]).add_(vector)


def _pixel_motion(sources: CameraPath, targets: CameraPath) -> tuple[Tensor, Tensor]:
    """[B, 3, 3] and [B, 3], float64: target position = matrix @ (u, v, 1) z + vector."""
    sources, targets = _in_float64(sources), _in_float64(targets)
    target_from_source = targets.world_to_camera @ sources.camera_to_world
    rotation, translation = target_from_source[:, :3, :3], target_from_source[:, :3, 3]
    target_matrix = targets.intrinsic_matrix
    matrix = target_matrix @ rotation @ torch.linalg.inv(sources.intrinsic_matrix)
    return matrix, (target_matrix @ translation[..., None])[..., 0]


def _in_float64(cameras: CameraPath) -> CameraPath:
    return replace(
        cameras,
        camera_to_world=cameras.camera_to_world.double(),
        intrinsics=cameras.intrinsics.double(),
    )
