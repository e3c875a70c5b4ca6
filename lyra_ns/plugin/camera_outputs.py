"""What nerfstudio's viewer, renderer and evaluation get for one camera."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from torch import Tensor

from lyra_ns.gaussians import Gaussians
from lyra_ns.plugin.gauss_params import splatfacto_params
from lyra_ns.plugin.views import camera_path_of
from lyra_ns.rendering import RenderSettings, render


def with_background(settings: RenderSettings, background: Float[Tensor, "3"] | None) -> RenderSettings:
    """The settings with another background, or as they are."""
    if background is None:
        return settings
    return replace(settings, background=tuple(background.tolist()))


def outputs_of_camera(
    gaussians: Gaussians, camera: Cameras, settings: RenderSettings
) -> dict[str, Float[Tensor, "H W C"]]:
    """rgb, depth (z), accumulation and background of one camera."""
    rendered = render(gaussians, camera_path_of(camera), settings)
    alpha = rendered.alpha[0, ..., None]
    depth = rendered.depth[0, ..., None]
    return {
        "rgb": rendered.rgb[0].clamp(0.0, 1.0),
        # Where nothing is seen the viewer wants the far end, not something before the camera.
        "depth": torch.where(alpha > 0, depth, depth.max()),
        "accumulation": alpha,
        "background": alpha.new_tensor(settings.background).expand(*alpha.shape[:2], 3),
    }


def cropped(gaussians: Gaussians, box: OrientedBox | None) -> Gaussians:
    """The Gaussians [G] inside a box of the z-up world, at least one; all without a box."""
    if box is None:
        return gaussians
    inside = box.within(splatfacto_params(gaussians)["means"]).reshape(-1)
    index = inside.nonzero()[:, 0]
    return gaussians.select(index if len(index) else index.new_zeros(1))
