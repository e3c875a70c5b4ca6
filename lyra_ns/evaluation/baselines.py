"""What a reconstruction must beat, and a reference line that it may not reach.

Floors: the mean colour of the input frames, and the nearest input frame shown as it is. Reference line: the
nearest input frame moved to the target camera by its true depth, which no method here is given.

Shape letters: V trajectories, L frames, M target views, H W image, G Gaussians.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lyra_ns.cameras import CameraPath, ray_grid
from lyra_ns.gaussians import Gaussians
from lyra_ns.rendering import Rendered, RenderSettings, render

SPLAT_SIGMA_PIXELS = 0.55
"""Standard deviation of a pixel's Gaussian, in pixels: neighbours close the surface without much blur."""
SPLAT_OPACITY = 0.95
"""Opacity of a pixel's Gaussian."""
COVERED_ALPHA = 0.9
"""A target pixel counts as seen by the warped frame above this accumulated opacity."""
SMALLEST_ALPHA = 1e-6
"""Accumulated opacity is taken as at least this before dividing by it."""
WARP_SETTINGS = RenderSettings(response="ewa", background=(0.0, 0.0, 0.0), dilation=0.03)
"""Black, so that alpha can be divided out. Little dilation: under the usual 0.3 the first of two neighbours
hides the second, which shifts and blurs the picture (24.9 instead of 27.7 dB at the real stereo pair)."""


def mean_colour(frames: Float[Tensor, "V L 3 H W"], num_targets: int) -> Float[Tensor, "M H W 3"]:
    """The mean colour of all input frames, everywhere."""
    height, width = frames.shape[-2:]
    return frames.mean((0, 1, 3, 4)).expand(num_targets, height, width, 3)


def nearest_frames(
    cameras: CameraPath, target_cameras: CameraPath, typical_depth: float
) -> Int[Tensor, " M"]:
    """For each target camera the index, in the flattened [V L], of the input frame that looks most like it.

    The measure is the shift, in radians, of a point at `typical_depth`: distance of the centres over it,
    plus the angle between the orientations. Both paths must be in one world.
    """
    sources = cameras.reshape(-1)
    centres, target_centres = sources.camera_to_world[:, :3, 3], target_cameras.camera_to_world[:, :3, 3]
    distance = torch.linalg.vector_norm(target_centres[:, None] - centres, dim=-1)
    rotations, target_rotations = (
        sources.camera_to_world[:, :3, :3],
        target_cameras.camera_to_world[:, :3, :3],
    )
    # The trace of a relative rotation is the sum of products of the entries.
    trace = torch.einsum("mij,nij->mn", target_rotations, rotations)
    angle = torch.arccos(((trace - 1) / 2).clamp(-1, 1))
    return (distance / typical_depth + angle).argmin(1)


def nearest_frame(
    frames: Float[Tensor, "V L 3 H W"],
    cameras: CameraPath,
    target_cameras: CameraPath,
    typical_depth: float,
) -> Float[Tensor, "M H W 3"]:
    """For each target the input frame that looks most like it, as it is."""
    index = nearest_frames(cameras, target_cameras, typical_depth)
    return frames.flatten(0, 1)[index].movedim(1, -1)


@dataclass(frozen=True)
class WarpedImages:
    """Frames moved to other cameras by their depth."""

    rgb: Float[Tensor, "M H W 3"]
    """Colours, holes filled."""
    covered: Bool[Tensor, "M H W"]
    """Where the colour comes from the moved frame and not from the filling."""


def warped_frame(
    frames: Float[Tensor, "V L 3 H W"],
    depth: Float[Tensor, "V L H W"],
    cameras: CameraPath,
    target_cameras: CameraPath,
    typical_depth: float,
) -> WarpedImages:
    """The nearest input frame of each target moved there by its true z-depth (0 where unknown).

    Holes, which no pixel reaches, show what the nearest frame has at the same place in the image.
    """
    index = nearest_frames(cameras, target_cameras, typical_depth)
    frames, depth, cameras = frames.flatten(0, 1).movedim(1, -1), depth.flatten(0, 1), cameras.reshape(-1)
    rgb = frames[index].clone()
    covered = torch.zeros(rgb.shape[:-1], dtype=torch.bool, device=rgb.device)
    for source in index.unique().tolist():
        targets = (index == source).nonzero()[:, 0]
        splats = pixel_gaussians(frames[source], depth[source], cameras[source])
        moved = render_splats(splats, target_cameras[targets])
        seen = moved.alpha > COVERED_ALPHA
        covered[targets] = seen
        rgb[targets] = torch.where(seen[..., None], moved.rgb, rgb[targets])
    return WarpedImages(rgb, covered)


def pixel_gaussians(
    rgb: Float[Tensor, "H W 3"], depth: Float[Tensor, "H W"], camera: CameraPath
) -> Gaussians:
    """One pixel-sized Gaussian for each pixel whose z-depth is known (finite and above 0), on its ray."""
    rays = ray_grid(camera, *depth.shape)
    known = torch.isfinite(depth) & (depth > 0)
    along_axis = (rays.directions * camera.camera_to_world[:3, 2]).sum(-1)
    distance = (depth / along_axis)[known]
    means = rays.origins[known] + rays.directions[known] * distance[:, None]
    # A surface that faces the image has the size of a pixel at its z-depth, not at its distance.
    scales = SPLAT_SIGMA_PIXELS * depth[known] / camera.intrinsics[0]
    quats = means.new_tensor([1.0, 0.0, 0.0, 0.0]).expand(len(means), 4)
    opacities = torch.full_like(scales, SPLAT_OPACITY)
    return Gaussians(means, quats, scales[:, None].expand(-1, 3), opacities, rgb[known])


@torch.no_grad()
def render_splats(splats: Gaussians, cameras: CameraPath) -> Rendered:
    """Images of `pixel_gaussians`, colours in [0, 1] and undimmed where splats are thin; black in holes."""
    rendered = render(splats, cameras, WARP_SETTINGS)
    rgb = rendered.rgb / rendered.alpha[..., None].clamp(min=SMALLEST_ALPHA)
    return replace(rendered, rgb=rgb.clamp(0, 1))
