"""Cameras: one convention inside, converted at the border with nerfstudio and nowhere else.

Inside this package a camera looks along +z, x points right and y points down (OpenCV). Poses are
`camera_to_world` matrices of shape [4, 4]; intrinsics are (fx, fy, cx, cy) in pixels of an image of
`height` x `width`, and the centre of the first pixel lies at (0.5, 0.5).

Shape letters: L frames, H W image, h w grid cells; `*batch` any leading axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

OPENGL_FROM_OPENCV_AXES = (1.0, -1.0, -1.0, 1.0)
"""Column signs that turn an OpenCV camera into nerfstudio's OpenGL camera, and back."""

NERFSTUDIO_WORLD_FROM_OPENCV_WORLD = (
    (1.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, 1.0, 0.0),
    (0.0, -1.0, 0.0, 0.0),
    (0.0, 0.0, 0.0, 1.0),
)
"""Rotation that lays our y-down world into nerfstudio's z-up world (its viewer orbits around z)."""


@dataclass(frozen=True)
class CameraPath:
    """Cameras of one image size, with any leading axes (trajectory, frame, ...)."""

    camera_to_world: Float[Tensor, "*batch 4 4"]
    """OpenCV camera-to-world matrices."""
    intrinsics: Float[Tensor, "*batch 4"]
    """fx, fy, cx, cy in pixels of (height, width)."""
    times: Float[Tensor, "*batch"]
    """Moment of each frame, from 0 (first) to 1 (last)."""
    height: int
    """Image height in pixels."""
    width: int
    """Image width in pixels."""

    @property
    def shape(self) -> torch.Size:
        """The leading axes."""
        return self.camera_to_world.shape[:-2]

    @property
    def world_to_camera(self) -> Float[Tensor, "*batch 4 4"]:
        """Inverse poses."""
        return invert_rigid(self.camera_to_world)

    @property
    def intrinsic_matrix(self) -> Float[Tensor, "*batch 3 3"]:
        """Intrinsics as 3 x 3 matrices."""
        fx, fy, cx, cy = self.intrinsics.unbind(-1)
        zero, one = torch.zeros_like(fx), torch.ones_like(fx)
        rows = [fx, zero, cx, zero, fy, cy, zero, zero, one]
        return torch.stack(rows, -1).unflatten(-1, (3, 3))

    def __getitem__(self, index: Any) -> CameraPath:
        """The cameras at `index` of the leading axes."""
        return replace(
            self,
            camera_to_world=self.camera_to_world[index],
            intrinsics=self.intrinsics[index],
            times=self.times[index],
        )

    def reshape(self, *shape: int) -> CameraPath:
        """The same cameras with other leading axes."""
        return replace(
            self,
            camera_to_world=self.camera_to_world.reshape(*shape, 4, 4),
            intrinsics=self.intrinsics.reshape(*shape, 4),
            times=self.times.reshape(*shape),
        )

    def to(self, device: torch.device | str) -> CameraPath:
        """The same cameras on `device`."""
        return replace(
            self,
            camera_to_world=self.camera_to_world.to(device, non_blocking=True),
            intrinsics=self.intrinsics.to(device, non_blocking=True),
            times=self.times.to(device, non_blocking=True),
        )

    def resized(self, height: int, width: int) -> CameraPath:
        """The same cameras for images stretched to `height` x `width`."""
        scale = self.intrinsics.new_tensor(
            [width / self.width, height / self.height, width / self.width, height / self.height]
        )
        return replace(self, intrinsics=self.intrinsics * scale, height=height, width=width)


def stack_cameras(paths: list[CameraPath]) -> CameraPath:
    """Cameras stacked along a new first axis; all must have one image size."""
    sizes = {(path.height, path.width) for path in paths}
    if len(sizes) != 1:
        raise ValueError(f"cameras of one stack must share an image size, found {sorted(sizes)}")
    return replace(
        paths[0],
        camera_to_world=torch.stack([path.camera_to_world for path in paths]),
        intrinsics=torch.stack([path.intrinsics for path in paths]),
        times=torch.stack([path.times for path in paths]),
    )


def concatenate_cameras(paths: Sequence[CameraPath]) -> CameraPath:
    """Cameras of one image size one after the other along their first axis."""
    sizes = {(path.height, path.width) for path in paths}
    if len(sizes) != 1:
        raise ValueError(f"cameras of one path must share an image size, found {sorted(sizes)}")
    return replace(
        paths[0],
        camera_to_world=torch.cat([path.camera_to_world for path in paths]),
        intrinsics=torch.cat([path.intrinsics for path in paths]),
        times=torch.cat([path.times for path in paths]),
    )


def invert_rigid(pose: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Inverse of rotation-and-translation matrices, without a general solve."""
    rotation, translation = pose[..., :3, :3], pose[..., :3, 3:]
    inverse_rotation = rotation.transpose(-1, -2)
    top = torch.cat([inverse_rotation, -inverse_rotation @ translation], -1)
    return torch.cat([top, pose[..., 3:, :]], -2)


def relative_to(path: CameraPath, reference_camera_to_world: Float[Tensor, "*#batch 4 4"]) -> CameraPath:
    """The path in the frame of a reference camera: frame 0 of the first listed view for official decoders.

    Source: docs/reference/decoder.md, "Camera conditioning".
    """
    reference_from_world = invert_rigid(reference_camera_to_world)
    return replace(path, camera_to_world=reference_from_world @ path.camera_to_world)


def crop_and_resize_intrinsics(
    intrinsics: Float[Tensor, "*batch 4"], from_size: tuple[int, int], to_size: tuple[int, int]
) -> Float[Tensor, "*batch 4"]:
    """Intrinsics after a centre crop to the target's aspect ratio and a resize.

    Source: docs/reference/decoder.md, "Camera conditioning".
    """
    (from_height, from_width), (height, width) = from_size, to_size
    ratio = min(from_height / height, from_width / width)
    crop_height, crop_width = int(height * ratio), int(width * ratio)
    shift = intrinsics.new_tensor([0.0, 0.0, (crop_width - from_width) / 2, (crop_height - from_height) / 2])
    scale_x, scale_y = width / crop_width, height / crop_height
    return (intrinsics + shift) * intrinsics.new_tensor([scale_x, scale_y, scale_x, scale_y])


@dataclass(frozen=True)
class RayGrid:
    """One ray for each cell of a regular grid over the image, in world coordinates."""

    origins: Float[Tensor, "*batch h w 3"]
    """Camera centre, repeated over the grid."""
    directions: Float[Tensor, "*batch h w 3"]
    """Unit directions through the cell centres."""
    cell_size: Float[Tensor, "*batch h w"]
    """World size of a cell at distance 1 along its ray."""

    def to(self, target: torch.device | str | torch.dtype) -> RayGrid:
        """The same rays on another device or in another floating-point type."""
        return RayGrid(self.origins.to(target), self.directions.to(target), self.cell_size.to(target))

    def flatten_cells(self) -> RayGrid:
        """The same rays as [B, 1, G] rows in the order view, frame, row, column; [B, V, L, h, w] in."""
        return RayGrid(
            self.origins.flatten(1, -2)[:, None],
            self.directions.flatten(1, -2)[:, None],
            self.cell_size.flatten(1)[:, None],
        )


def ray_grid(cameras: CameraPath, grid_height: int, grid_width: int) -> RayGrid:
    """Rays through the cell centres of a grid of `grid_height` x `grid_width` over each image.

    Intrinsics are scaled to the grid first, as the official code does for its 1/8 grid
    (docs/reference/decoder.md, "Rays").
    """
    scaled = cameras.resized(grid_height, grid_width)
    fx, fy, cx, cy = (scaled.intrinsics[..., k, None, None] for k in range(4))
    like = scaled.intrinsics
    v, u = torch.meshgrid(
        cell_centres(grid_height, like),
        cell_centres(grid_width, like),
        indexing="ij",
    )
    x, y = (u - cx) / fx, (v - cy) / fy
    in_camera = torch.stack([x, y, torch.ones_like(x)], -1)
    length = in_camera.norm(dim=-1)
    rotation = cameras.camera_to_world[..., None, :3, :3]
    directions = (in_camera / length[..., None]) @ rotation.transpose(-1, -2)
    origins = cameras.camera_to_world[..., None, None, :3, 3].expand_as(directions)
    return RayGrid(origins, directions, 1.0 / (fx * length))


def cell_centres(num: int, like: Tensor) -> Float[Tensor, " num"]:
    """0.5, 1.5, ... in the dtype and on the device of `like`.

    By linspace, whose rounding in bfloat16 is part of the official regime (docs/reference/decoder.md,
    "Precision").
    """
    return torch.linspace(0, num - 1, num, device=like.device, dtype=like.dtype) + 0.5


def plucker_map(rays: RayGrid) -> Float[Tensor, "*batch h w 6"]:
    """Plücker coordinates [moment o x d, direction d] of each ray."""
    return torch.cat([torch.linalg.cross(rays.origins, rays.directions), rays.directions], -1)


def project(
    points: Float[Tensor, "*batch n 3"], cameras: CameraPath
) -> tuple[Float[Tensor, "*batch n 2"], Float[Tensor, "*batch n"]]:
    """Pixel positions and z-depths of world points in each camera."""
    world_to_camera = cameras.world_to_camera
    in_camera = points @ world_to_camera[..., :3, :3].transpose(-1, -2) + world_to_camera[..., None, :3, 3]
    depth = in_camera[..., 2]
    focal, centre = cameras.intrinsics[..., None, :2], cameras.intrinsics[..., None, 2:]
    return in_camera[..., :2] / depth[..., None] * focal + centre, depth


def look_at(
    centre: Float[Tensor, "*batch 3"], target: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 4 4"]:
    """Camera-to-world poses at `centre` that look at `target`, with y pointing down in the world."""
    forward = functional.normalize(target - centre, dim=-1)
    down = torch.tensor([0.0, 1.0, 0.0], device=centre.device, dtype=centre.dtype).expand_as(forward)
    right = functional.normalize(torch.linalg.cross(down, forward), dim=-1)
    columns = torch.stack([right, torch.linalg.cross(forward, right), forward, centre], -1)
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0], device=centre.device, dtype=centre.dtype)
    return torch.cat([columns, bottom.expand(*centre.shape[:-1], 1, 4)], -2)


def nerfstudio_from_opencv(camera_to_world: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Poses for nerfstudio: OpenGL camera axes in a z-up world."""
    world = camera_to_world.new_tensor(NERFSTUDIO_WORLD_FROM_OPENCV_WORLD)
    return world @ camera_to_world * camera_to_world.new_tensor(OPENGL_FROM_OPENCV_AXES)


def opencv_from_nerfstudio(camera_to_world: Float[Tensor, "*batch rows 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Our poses from nerfstudio's [3, 4] or [4, 4] camera-to-world matrices."""
    if camera_to_world.shape[-2] == 3:
        bottom = camera_to_world.new_tensor([0.0, 0.0, 0.0, 1.0])
        bottom = bottom.expand(*camera_to_world.shape[:-2], 1, 4)
        camera_to_world = torch.cat([camera_to_world, bottom], -2)
    world = camera_to_world.new_tensor(NERFSTUDIO_WORLD_FROM_OPENCV_WORLD)
    return world.T @ camera_to_world * camera_to_world.new_tensor(OPENGL_FROM_OPENCV_AXES)
