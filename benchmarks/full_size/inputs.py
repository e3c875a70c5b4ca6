"""Inputs of the paper's size, random where their values do not change the speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.camera_paths import TRAJECTORIES, trajectory_path
from lyra_ns.cameras import CameraPath, RayGrid, ray_grid, stack_cameras
from lyra_ns.data.layout import READING_ORDER
from lyra_ns.decoder.conditioning import Conditioning
from lyra_ns.gaussians import Gaussians


@dataclass(frozen=True)
class Size:
    """Sizes of a scene."""

    num_frames: int = 121
    """Frames of a trajectory, 8 k + 1."""
    height: int = 704
    """Rows of pixels."""
    width: int = 1280
    """Columns of pixels."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns of an 8x8x8 codec."""
        return (self.num_frames - 1) // 8 + 1, self.height // 8, self.width // 8


def cameras(
    num_views: int, size: Size, device: torch.device | str, order: Sequence[int] = READING_ORDER
) -> CameraPath:
    """The first official trajectories of `order` [1, V, L], as far as the official data move them.

    All start at the origin of the world and look along +z.
    """
    intrinsics = torch.tensor([0.8 * size.width, 0.8 * size.width, size.width / 2, size.height / 2])
    paths = [
        trajectory_path(
            trajectory,
            TRAJECTORIES[trajectory].distance_range[1],
            centre_depth=1.0,
            num_frames=size.num_frames,
            intrinsics=intrinsics,
            height=size.height,
            width=size.width,
        )
        for trajectory in order[:num_views]
    ]
    return stack_cameras(paths).reshape(1, num_views, size.num_frames).to(device)


def cell_rays(paths: CameraPath, cell_size: int = 8) -> RayGrid:
    """The ray of each Gaussian cell."""
    return ray_grid(paths, paths.height // cell_size, paths.width // cell_size)


def latents(
    num_views: int, size: Size, device: torch.device | str, channels: int = 16, seed: int = 0
) -> Float[Tensor, "1 V C T h w"]:
    """Normal latents."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(1, num_views, channels, *size.latent_shape, generator=generator, device=device)


def conditioning(num_views: int, size: Size, device: torch.device | str) -> Conditioning:
    """True rays, and normal numbers for the encoded ray maps."""
    return Conditioning(
        latents(num_views, size, device, channels=32, seed=1),
        cell_rays(cameras(num_views, size, device)),
    )


def gaussians(num_views: int, size: Size, device: torch.device | str) -> Gaussians:
    """Gaussians [G] spread as by a trained decoder: one per cell on a wavy wall, about as wide as the cell.

    Opacities are drawn evenly, rotations at random; all trajectories see the same wall, as in a real scene.
    """
    rays = cell_rays(cameras(num_views, size, device)).flatten_cells()
    origins, directions = rays.origins[0, 0], rays.directions[0, 0]
    waves = torch.sin(3 * directions[:, :1]) * torch.cos(4 * directions[:, 1:2])
    along = (1.0 + 0.25 * waves) / directions[:, 2:]
    generator = torch.Generator(device).manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    num = len(origins)
    footprint = rays.cell_size[0, 0, :, None] * along
    return Gaussians(
        means=origins + directions * along,
        quats=torch.nn.functional.normalize(draw(num, 4) - 0.5, dim=-1),
        scales=footprint * (0.15 + 0.5 * draw(num, 3)),
        opacities=draw(num),
        rgb=draw(num, 3),
    )
