"""Pictures of a PLY of Gaussians: `python examples/render.py scene.ply --output views`.

Takes a 3DGS PLY of any trainer. The cameras stand side by side and look along +z, which suits scenes that
were made by Lyra: their first camera is at the origin.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import torch
import tyro
from PIL import Image

import lyra_ns


def cameras_side_by_side(num: int, width: float, size: tuple[int, int], fov: float) -> lyra_ns.CameraPath:
    """Cameras [num] from -width / 2 to width / 2 along x, in units of the scene; `fov` in degrees."""
    height, columns = size
    poses = torch.eye(4).repeat(num, 1, 1)
    poses[:, 0, 3] = torch.linspace(-width / 2, width / 2, num)
    focal = columns / 2 / math.tan(math.radians(fov) / 2)
    intrinsics = torch.tensor([focal, focal, columns / 2, height / 2]).repeat(num, 1)
    return lyra_ns.CameraPath(poses, intrinsics, torch.zeros(num), height, columns)


def render(
    scene: Annotated[str, tyro.conf.Positional],
    output: str = "views",
    num_views: int = 5,
    width: float = 0.4,
    size: tuple[int, int] = (360, 640),
    fov: float = 60.0,
) -> None:
    """Write OUTPUT/view_0.png and so on: NUM_VIEWS pictures of SIZE (height, width)."""
    gaussians = lyra_ns.Gaussians.load(scene)
    cameras = cameras_side_by_side(num_views, width, size, fov)
    seen = lyra_ns.render(gaussians, cameras, lyra_ns.RenderSettings(response="ewa"))
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    for number, rgb in enumerate(seen.rgb.clamp(0, 1)):
        Image.fromarray((rgb * 255).round().byte().numpy()).save(folder / f"view_{number}.png")
    print(f"{folder}: {num_views} views of {gaussians.num:,} Gaussians")


if __name__ == "__main__":
    tyro.cli(render)
