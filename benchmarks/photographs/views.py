"""A photograph as a scene that was made of it must show it, and the same in one Gaussian per pixel.

Shape letters: H W image, M views.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.cameras import CameraPath, look_at
from lyra_ns.evaluation.baselines import SPLAT_SIGMA_PIXELS, pixel_gaussians
from lyra_ns.gaussians import Gaussians
from lyra_ns.rendering import Rendered, RenderSettings, render

VIEW_PIXELS = 512 * 320
"""About how many pixels a photograph is judged at, whatever its aspect."""
SIGMA_PIXELS, OPACITY = 0.5, 0.98
"""Size of a pixel's Gaussian in pixels, and its opacity: the sharpest surface without gaps."""
SETTINGS = RenderSettings(response="ewa")
"""How everything is drawn; on white."""


def view_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of about VIEW_PIXELS with this aspect."""
    scale = math.sqrt(VIEW_PIXELS / (height * width))
    return round(height * scale), round(width * scale)


def per_pixel(rgb: Float[Tensor, "H W 3"], depth: Float[Tensor, "H W"], camera: CameraPath) -> Gaussians:
    """One Gaussian for each pixel of the photograph whose depth is known."""
    pixels = pixel_gaussians(rgb, depth, camera)
    return replace(
        pixels,
        scales=pixels.scales * (SIGMA_PIXELS / SPLAT_SIGMA_PIXELS),
        opacities=torch.full_like(pixels.opacities, OPACITY),
    )


def on_arc(camera: CameraPath, degrees: float, centre_depth: float) -> CameraPath:
    """The camera [] moved to the right on an arc about the point `centre_depth` before it, looking at it."""
    angle = math.radians(degrees)
    centre = torch.tensor([math.sin(angle), 0.0, 1 - math.cos(angle)]) * centre_depth
    pose = look_at(centre, torch.tensor([0.0, 0.0, centre_depth]))
    return replace(camera, camera_to_world=pose)


@torch.no_grad()
def seen(gaussians: Gaussians, camera: CameraPath) -> Rendered:
    """What one camera [] sees, [1, H, W, ...], colours from 0 to 1."""
    rendered = render(gaussians, camera.reshape(1), SETTINGS)
    return replace(rendered, rgb=rendered.rgb.clamp(0, 1))
