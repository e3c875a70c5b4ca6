"""Are the poses of the time-reversed views stored backwards?

Views 6 to 11 of dynamic scenes were generated on the reversed video and their frames turned back to
forward time, so their *last* frame should lie at the common start pose. The published script turns the
frames but not the saved poses; then the *first* pose lies there instead, and the poses must be reversed.

The ends of the paths tell, and where they do not (a closed path looks alike from both ends), frames that are
moved to each other by their depth: they fit under the true order only.

Source: docs/reference/data_layout.md, "Where writer and reader disagree".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from lyra_ns.cameras import CameraPath, project, ray_grid

FlippedPoseOrder = Literal["auto", "as_is", "reverse"]
PoseOrder = Literal["as_is", "reverse"]
"""How poses are stored: in forward time like their frames, or backwards."""
FIRST_FLIPPED_ID = 6
"""Trajectory ids from here on are time-reversed views of a dynamic scene."""
CLOSED_PATH_SHARE = 0.05
"""Below this share of the path's extent the two ends count as equally near (the spiral is closed)."""
WARP_ROWS = 48
"""About how many rows of points are moved from frame to frame."""
CLEAR_SHARE = 0.8
"""Moved frames must differ under one order by less than this share of what they do under the other."""
LEAST_SEEN = 0.2
"""Share of the points that must be seen by both frames."""


def order_of_ends(flipped: Sequence[Float[Tensor, "_ 4 4"]], start: Float[Tensor, "4 4"]) -> PoseOrder | None:
    """How the poses of flipped views are stored: their last one should be the start; None if unclear.

    The views of one scene vote together, because closed paths (the spiral) look alike from both ends.
    """
    offsets = [(path[:, :3, 3] - start[:3, 3]).norm(dim=-1) for path in flipped]
    extent = max(float(offset.max()) for offset in offsets)
    lead = sum(float(offset[-1] - offset[0]) for offset in offsets)
    if abs(lead) <= CLOSED_PATH_SHARE * extent:
        return None
    return "reverse" if lead > 0 else "as_is"


def frames_to_compare(num_frames: int) -> list[int]:
    """Positions of frames along a clip that show each order of its poses, whatever the path."""
    return sorted({round(share * (num_frames - 1)) for share in (0.0, 0.2, 0.4, 0.7)})


def order_by_warping(
    rgb: UInt8[Tensor, "n 3 H W"], depth: Float[Tensor, "n H W"], cameras: CameraPath, frames: Sequence[int]
) -> PoseOrder | None:
    """How the poses of one clip are stored, by moving some of its frames to each other; None if unclear.

    `rgb` and `depth` (z, 0 where unknown) are those of `frames`; `cameras` [L] are all, as stored.
    """
    positions = torch.tensor(list(frames))
    in_order = cameras[positions]
    backwards = replace(in_order, camera_to_world=cameras.camera_to_world.flip(0)[positions])
    as_is, reverse = (_warp_error(rgb, depth, each) for each in (in_order, backwards))
    if as_is is None or reverse is None or min(as_is, reverse) >= CLEAR_SHARE * max(as_is, reverse):
        return None
    return "as_is" if as_is < reverse else "reverse"


def _warp_error(rgb: Tensor, depth: Tensor, cameras: CameraPath) -> float | None:
    """Mean difference of colours between frames and the next ones moved there; None if too little is seen."""
    height, width = rgb.shape[-2:]
    stride = max(1, height // WARP_ROWS)
    rows, columns = height // stride, width // stride
    images = functional.interpolate(rgb.float() / 255, (rows, columns), mode="area")
    z = functional.interpolate(depth[:, None], (rows, columns), mode="nearest-exact")[:, 0]
    cameras = cameras.resized(rows, columns)
    pixels, ahead = project(_points(z, cameras)[:-1].flatten(1, 2), cameras[1:])
    grid = (pixels / pixels.new_tensor([columns, rows]) * 2 - 1).view(-1, rows, columns, 2)
    known = (z[:-1] > 0) & (ahead > 0).view_as(z[:-1]) & (grid.abs() < 1).all(-1)
    moved = functional.grid_sample(images[1:], grid, align_corners=False)
    errors = (moved - images[:-1]).abs().mean(1)[known]
    return float(errors.mean()) if float(known.float().mean()) >= LEAST_SEEN else None


def _points(z: Float[Tensor, "n h w"], cameras: CameraPath) -> Float[Tensor, "n h w 3"]:
    """World positions of grid cells at their z-depth."""
    rays = ray_grid(cameras, *z.shape[1:])
    forward = cameras.camera_to_world[:, None, None, :3, 2]
    return rays.origins + rays.directions * (z / (rays.directions * forward).sum(-1))[..., None]
