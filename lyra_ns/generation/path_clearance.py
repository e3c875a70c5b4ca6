"""How near the things of a picture are, and how far a camera may move without flying through them.

Where a picture shows sky, the median of its depth is that of nothing; a path as long as that asks for leads
through what the picture is of. Shape letters: S depth maps, L frames, H W image, P points.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from lyra_ns.cameras import CameraPath, project

MIDDLE_SHARE = 0.5
"""Share of each side of a picture that is its middle, where its subject is looked for."""
NEAR_SHARE = 0.05
"""Share of the middle that may be nearer than its subject: a thin one before the sky counts as well."""
CLEARANCE = 1 / 3
"""What is in view stays farther away than this share of its first depth: it grows threefold at most."""
STEP = 0.02
"""Lengths of paths are tried in steps of this, in units of the depth of what they turn about."""
MOST_POINTS = 96
"""Points along the longer side of a picture that are looked at."""
MOST_FRAMES = 9
"""Frames of a path that are looked at."""
UNKNOWN = 1e6
"""Depth at which nothing is in the way."""


def near_depth(depth: Float[Tensor, "H W"]) -> float:
    """Depth of the subject: a low percentile in the middle of the frame, or of all of it if that is unknown.

    Unknown pixels are 0 and do not count. ValueError where nothing is known.
    """
    top, left = (round(side * (1 - MIDDLE_SHARE) / 2) for side in depth.shape)
    middle = depth[top : depth.shape[0] - top, left : depth.shape[1] - left]
    for part in (middle, depth):
        known = part[part > 0]
        if len(known):
            # By sorting, since torch.quantile refuses large images.
            return float(known.sort().values[int(NEAR_SHARE * (len(known) - 1))])
    raise ValueError("expected depth of at least one pixel, found none: take another --depth")


def clear_distance(
    path_of: Callable[[float], CameraPath], distance: float, depth: Float[Tensor, "S H W"]
) -> float:
    """The largest distance up to `distance` with which a path stays clear of everything in its view.

    `path_of` gives the path [L] of a distance, from the camera of the depth, which is that of one picture
    (S = 1) or of each frame of a video (S = L), through the same lens. Depth is in the units of the path, 0
    where unknown, and has the aspect of the path's images.
    """
    points = _points(depth, path_of(0.0).resized(*depth.shape[-2:]).intrinsics[0])
    num_steps = max(1, math.ceil(distance / STEP))
    for step in range(1, num_steps + 1):
        if not _is_clear(path_of(distance * step / num_steps), points):
            return distance * (step - 1) / num_steps
    return distance


def _points(depth: Float[Tensor, "S H W"], intrinsics: Float[Tensor, " 4"]) -> Float[Tensor, "S P 3"]:
    """The nearest point of each block of pixels, in the camera of the depth."""
    block = math.ceil(max(depth.shape[-2:]) / MOST_POINTS)
    known = torch.where(depth > 0, depth, UNKNOWN)
    nearest = -functional.max_pool2d(-known[:, None], block, ceil_mode=True)[:, 0]
    fx, fy, cx, cy = intrinsics.to(nearest)
    row, column = (block * (torch.arange(count).to(nearest) + 0.5) for count in nearest.shape[-2:])
    x, y = ((column - cx) / fx).expand_as(nearest), ((row - cy) / fy)[:, None].expand_as(nearest)
    return (torch.stack([x, y, torch.ones_like(x)], -1) * nearest[..., None]).flatten(1, 2)


def _is_clear(path: CameraPath, points: Float[Tensor, "S P 3"]) -> bool:
    """Whether nothing that is in view anywhere along the path is much nearer than it was."""
    frames = torch.linspace(0, path.shape[0] - 1, min(MOST_FRAMES, path.shape[0])).round().long()
    cameras = path[frames].to(points.device)
    seen = points.expand(path.shape[0], -1, -1)[frames]
    pixels, depth = project(seen, cameras)
    column, row = pixels.unbind(-1)
    in_view: Bool[Tensor, "L P"] = (depth > 0) & (column >= 0) & (column < path.width)
    in_view &= (row >= 0) & (row < path.height)
    return not bool((in_view & (depth < CLEARANCE * seen[..., 2])).any())
