"""Cameras around the centre of a scene, and how far they can turn while most of what they see is known.

Shape letter: M views.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.cameras import CameraPath, look_at
from lyra_ns.gaussians import Gaussians
from lyra_ns.generation.cache.scene import SceneCache
from lyra_ns.generation.teachers.warp import shown_whole, warped_frames
from lyra_ns.rendering import RenderSettings, render

COVERED_SHARE = 0.9
"""Share of the picture that must be known for an angle to count as covered."""
DEGREES_TRIED = tuple(range(2, 32, 2))
"""Angles that are looked at, from near to far."""
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, 1), "down": (0, -1)}
"""To the right and upwards."""
OPAQUE = 0.5
"""Accumulated opacity from which on a pixel of Gaussians counts as known."""
CHECK_WIDTH = 128
"""Width in pixels at which coverage is measured."""
Coverage = Callable[[CameraPath], Float[Tensor, " M"]]
"""Share of the picture that each camera sees of what is known."""


def turned_camera(camera: CameraPath, centre_depth: float, right: float, up: float) -> CameraPath:
    """A camera [1] like this one [], turned by degrees about the point at `centre_depth` on its axis.

    It looks at that point from as far away as before; 0 degrees give the camera itself.
    """
    around, above = math.radians(right), math.radians(up)
    outwards = torch.tensor(
        [math.sin(around) * math.cos(above), -math.sin(above), -math.cos(around) * math.cos(above)]
    )
    centre = torch.tensor([0.0, 0.0, centre_depth])
    local = look_at(centre + centre_depth * outwards, centre).to(camera.camera_to_world)
    return replace(camera, camera_to_world=camera.camera_to_world @ local).reshape(1)


def covered_degrees(coverage: Coverage, camera: CameraPath, centre_depth: float) -> dict[str, int]:
    """For each direction the largest of DEGREES_TRIED up to which all are covered, 0 if none is."""
    height = max(1, round(camera.height * CHECK_WIDTH / camera.width))
    small = camera.resized(height, CHECK_WIDTH)
    found = {}
    for name, (right, up) in DIRECTIONS.items():
        found[name] = 0
        for degrees in DEGREES_TRIED:
            turned = turned_camera(small, centre_depth, right * degrees, up * degrees)
            if float(coverage(turned)[0]) < COVERED_SHARE:
                break
            found[name] = degrees
    return found


def coverage_of_cache(cache: SceneCache) -> Coverage:
    """What the cache shows, for scenes of which nothing else is known."""
    shown = shown_whole(cache)
    return lambda cameras: warped_frames(shown, cameras).mask.float().mean((1, 2, 3))


def coverage_of_gaussians(gaussians: Gaussians, settings: RenderSettings) -> Coverage:
    """What the Gaussians cover, for scenes that a video model has completed."""

    @torch.no_grad()
    def coverage(cameras: CameraPath) -> Tensor:
        seen = render(gaussians, cameras.to(gaussians.means.device), settings)
        return (seen.alpha > OPAQUE).float().mean((1, 2)).cpu()

    return coverage
