"""A small scene and its pictures, for tests of refinement."""

from __future__ import annotations

from dataclasses import replace

import torch

from lyra_ns.cameras import CameraPath, look_at
from lyra_ns.gaussians import Gaussians
from lyra_ns.refinement.config import RefinementConfig
from lyra_ns.refinement.views import RefinementViews
from lyra_ns.rendering import RenderSettings, render

HEIGHT, WIDTH = 40, 56
DEPTH = 4.0
SETTINGS = RenderSettings(response="ewa", background=(0.0, 0.0, 0.0))


def wall(spacing: float = 0.25, seed: int = 0) -> Gaussians:
    """A coloured wall of round Gaussians at DEPTH, a little larger than what the cameras see."""
    y, x = torch.meshgrid(torch.arange(-1.6, 1.6, spacing), torch.arange(-2.2, 2.2, spacing), indexing="ij")
    means = torch.stack([x, y, torch.full_like(x, DEPTH)], -1).reshape(-1, 3)
    generator = torch.Generator().manual_seed(seed)
    num = len(means)
    return Gaussians(
        means=means,
        quats=torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(num, 1),
        scales=torch.full((num, 3), 0.5 * spacing),
        opacities=torch.full((num,), 0.95),
        rgb=0.2 + 0.6 * torch.rand(num, 3, generator=generator),
    )


def spoiled(truth: Gaussians, seed: int = 1) -> Gaussians:
    """The scene as a coarse guess: grey, too large and a little off its place."""
    generator = torch.Generator().manual_seed(seed)
    return replace(
        truth,
        means=truth.means + 0.04 * torch.randn(truth.means.shape, generator=generator),
        scales=1.3 * truth.scales,
        rgb=0.5 + 0.2 * (truth.rgb - 0.5),
    )


def path(num: int = 6, height: int = HEIGHT, width: int = WIDTH) -> CameraPath:
    """Cameras on a line from left to right that look at the wall."""
    centres = torch.zeros(num, 3)
    centres[:, 0] = torch.linspace(-0.8, 0.8, num) if num > 1 else 0.0
    intrinsics = torch.tensor([1.0 * width, 1.0 * width, width / 2, height / 2])
    poses = look_at(centres, torch.tensor([0.0, 0.0, DEPTH]).expand(num, 3))
    return CameraPath(poses, intrinsics.expand(num, 4), torch.linspace(0, 1, num), height, width)


def pictures(truth: Gaussians, cameras: CameraPath | None = None, **changes) -> RefinementViews:
    """What the cameras see of the true scene; pictures 1 and 4 of six judge."""
    cameras = path() if cameras is None else cameras
    with torch.no_grad():
        seen = render(truth, cameras, SETTINGS)
    held_back = (1, 4) if cameras.shape[0] == 6 else ()
    return RefinementViews(**({"images": seen.rgb, "cameras": cameras, "held_back": held_back} | changes))


def config(**changes) -> RefinementConfig:
    """A short refinement."""
    return RefinementConfig(**({"num_steps": 40, "check_every": 10, "render": SETTINGS} | changes))
