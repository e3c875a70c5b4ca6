"""Cameras, pictures and depths with known geometry for the tests of the 3D cache."""

from __future__ import annotations

import torch
from torch import Tensor

from lyra_ns.cameras import CameraPath, look_at

HEIGHT, WIDTH, FOCAL = 40, 56, 50.0
WALL, BOX = 2.0, 1.0
BOX_ROWS, BOX_COLUMNS = slice(12, 28), slice(20, 36)


def cameras_at(positions: list[tuple[float, float, float]], target: float | None = None) -> CameraPath:
    """Cameras at `positions` that look along z, or at the point `target` ahead of the origin; float64."""
    centres = torch.tensor(positions, dtype=torch.float64)
    ahead = centres + centres.new_tensor([0.0, 0.0, 1.0])
    aims = ahead if target is None else centres.new_tensor([0.0, 0.0, target]).expand_as(centres)
    intrinsics = centres.new_tensor([FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2]).expand(len(centres), 4)
    times = torch.linspace(0, 1, len(centres), dtype=torch.float64)
    return CameraPath(look_at(centres, aims), intrinsics, times, HEIGHT, WIDTH)


def picture(seed: int = 0) -> Tensor:
    """Noise [3, H, W] from 0.05 to 1, so that no pixel looks like a hole."""
    generator = torch.Generator().manual_seed(seed)
    return 0.05 + 0.95 * torch.rand(3, HEIGHT, WIDTH, generator=generator, dtype=torch.float64)


def hill() -> Tensor:
    """Depth [H, W] that varies softly around 2, reliable up to the corners."""
    rows, columns = torch.meshgrid(
        torch.linspace(-1, 1, HEIGHT, dtype=torch.float64),
        torch.linspace(-1, 1, WIDTH, dtype=torch.float64),
        indexing="ij",
    )
    return WALL + 0.05 * torch.sin(3 * columns) + 0.03 * rows


def box_before_wall() -> Tensor:
    """Depth [H, W] of a wall at 2 with a box at 1 before it."""
    depth = torch.full((HEIGHT, WIDTH), WALL, dtype=torch.float64)
    depth[BOX_ROWS, BOX_COLUMNS] = BOX
    return depth


def two_colours() -> Tensor:
    """Picture [3, H, W] of `box_before_wall`: a red box, a green wall."""
    rgb = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.float64)
    rgb[1] = 1.0
    rgb[:, BOX_ROWS, BOX_COLUMNS] = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)[:, None, None]
    return rgb
