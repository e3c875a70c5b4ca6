"""Pixels with depth moved between cameras and splatted there, the nearest one on top.

A pixel spreads over the four around its new place. A z-depth is known where it is finite and above 0; where
it jumps it cannot be trusted, and a moved camera looks through the torn silhouette. What is splatted there
from behind may in truth be hidden by the near thing's unseen side, so it is called a hole: the gap is closed
by a sheet of triangles over the unreliable pixels (docs/reference/gen3c.md, "Foreground masking"). A triangle
covers one span of columns in each of its rows; triangles to rows and rows to pixels are plain repetition, so
the work is the number of covered pixels, on any device and for many images at once.

Shape letters: B images, or pairs of a source and a target, H W image, h w source image or grid, N triangles.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from lyra_ns.cameras import CameraPath, cell_centres, ray_grid

PIXEL_CENTRE = 0.5
"""Where this package has the centre of the first pixel."""
OFFICIAL_PIXEL_CENTRE = 0.0
"""Where GEN3C's warping has it (docs/reference/gen3c.md, "Warping")."""
WINDOW = 5
"""Side of the square, in pixels, over which a depth must be steady to be reliable."""


def with_pixel_centre(cameras: CameraPath, pixel_centre: float) -> CameraPath:
    """Cameras that do here what `cameras` mean where the first pixel's centre lies at `pixel_centre`."""
    shift = cameras.intrinsics.new_tensor([0.0, 0.0, 1.0, 1.0]) * (PIXEL_CENTRE - pixel_centre)
    return replace(cameras, intrinsics=cameras.intrinsics + shift)


def known_depth(depth: Float[Tensor, "*batch"]) -> Bool[Tensor, "*batch"]:
    """Where the depth is known: finite and above 0."""
    return torch.isfinite(depth) & (depth > 0)


def bounded_depth(depth: Float[Tensor, "*batch"], farthest: float | None) -> Float[Tensor, "*batch"]:
    """The depth, 0 where unknown.

    What lies beyond `farthest`, the infinitely far included, is moved there; without `farthest` infinitely
    far means unknown.
    """
    if farthest is not None:
        depth = depth.clamp(max=farthest)
    return torch.where(known_depth(depth), depth, 0.0)


def reliable_depth(depth: Float[Tensor, "B H W"], threshold: float) -> Bool[Tensor, "B H W"]:
    """Where the known depth is steady: (max - min) / mean over a square of 5 x 5 below `threshold`.

    `depth` is 0 where unknown, and that counts as a depth here: the neighbours of unknown pixels are
    unreliable. As in GEN3C the mean counts zeros beyond the image's border, which is stricter there
    (docs/reference/gen3c.md, "Warping"). A threshold of 1 or more lets every known depth pass.
    """
    known = depth > 0
    if threshold >= 1:
        return known
    images, padding = depth[:, None], WINDOW // 2
    largest = functional.max_pool2d(images, WINDOW, 1, padding)
    smallest = -functional.max_pool2d(-images, WINDOW, 1, padding)
    mean = functional.avg_pool2d(images, WINDOW, 1, padding)
    return known & ((largest - smallest) / (mean + 1e-6) < threshold)[:, 0]


def unproject(depth: Float[Tensor, "*batch H W"], cameras: CameraPath) -> Float[Tensor, "*batch H W 3"]:
    """World points of the pixels at their z-depths; the camera's centre where the depth is 0."""
    rays = ray_grid(cameras, *depth.shape[-2:])
    axis = cameras.camera_to_world[..., None, None, :3, 2]
    distance = depth / (rays.directions * axis).sum(-1)
    return rays.origins + rays.directions * distance[..., None]


def moved_pixels(
    depth: Float[Tensor, "B H W"], sources: CameraPath, targets: CameraPath
) -> Float[Tensor, "B 3 H W"]:
    """Homogeneous image positions (u z, v z, z) in the target cameras of source pixels at their z-depths.

    The same as projecting the unprojected points, without the points: between two pinholes a pixel moves by
    one matrix and, over its depth, one vector. These are made in float64, so that equal cameras leave every
    pixel at its place.
    """
    matrix, vector = _pixel_motion(sources, targets)
    rows, columns = (cell_centres(num, depth) for num in depth.shape[-2:])
    matrix, vector = matrix.to(depth.dtype)[..., None, None], vector.to(depth.dtype)[..., None, None]
    # [B, 3, H, 1] + [B, 3, 1, W]: the image of the pixel grid is a sum of a column and a row.
    direction = (matrix[:, :, 1] * rows[:, None] + matrix[:, :, 2]) + matrix[:, :, 0] * columns
    return direction.mul_(depth[:, None]).add_(vector)


def _pixel_motion(sources: CameraPath, targets: CameraPath) -> tuple[Tensor, Tensor]:
    """[B, 3, 3] and [B, 3], float64: target position = matrix @ (u, v, 1) z + vector."""
    sources, targets = _in_float64(sources), _in_float64(targets)
    target_from_source = targets.world_to_camera @ sources.camera_to_world
    rotation, translation = target_from_source[:, :3, :3], target_from_source[:, :3, 3]
    target_matrix = targets.intrinsic_matrix
    matrix = target_matrix @ rotation @ torch.linalg.inv(sources.intrinsic_matrix)
    return matrix, (target_matrix @ translation[..., None])[..., 0]


def _in_float64(cameras: CameraPath) -> CameraPath:
    return replace(
        cameras,
        camera_to_world=cameras.camera_to_world.double(),
        intrinsics=cameras.intrinsics.double(),
    )


PIECE = 2**22
"""Rows, or pixels, that are held at once."""
EDGE_PIXELS = 1e-3
"""A triangle covers pixels whose centre lies this near to it, or rounding would leave gaps between two."""


def nearest_triangle_depth(
    corners: Float[Tensor, "N 3 3"], image: Int[Tensor, " N"], num_images: int, size: tuple[int, int]
) -> Float[Tensor, "B H W"]:
    """z-depth of the nearest triangle at each pixel's centre; infinite where there is none.

    `corners` are homogeneous positions (u z, v z, z) in front of the camera, `image` says where each triangle
    belongs.
    """
    height, width = size
    inverse_depth = corners.new_zeros(num_images * height * width)
    z = corners[..., 2:]
    # Columns, rows and inverse depths: along lines of the image inverse depth is what is linear.
    flat = torch.cat([corners[..., :2] / z - PIXEL_CENTRE, 1 / z], -1)
    for triangle, row in _rows(flat, height):
        ends = _span(flat[triangle], row.to(flat.dtype))
        start = (image[triangle] * height + row) * width
        for index, value in _pixels(ends, start, width):
            inverse_depth.scatter_reduce_(0, index, value, "amax")
    return (1 / inverse_depth).reshape(num_images, height, width)


def _rows(flat: Tensor, height: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of a triangle and a row of the image that it touches."""
    first, last = _whole(flat[..., 1].amin(1), flat[..., 1].amax(1), height)
    for triangle, offset in _repeated((last - first + 1).clamp(min=0)):
        yield triangle, first[triangle] + offset


def _span(flat: Tensor, row: Tensor) -> Tensor:
    """[N, 2, 2] (column, inverse depth) of the left and the right end of each triangle in its row."""
    start, end = flat, flat.roll(-1, 1)
    rise = end[..., 1] - start[..., 1]
    share = (row[:, None] - start[..., 1]) / torch.where(rise == 0, 1.0, rise)
    # A row that only just misses a corner, within the tolerance, is taken to pass through it.
    slack = EDGE_PIXELS / rise.abs().clamp(min=EDGE_PIXELS)
    crossed = (rise != 0) & (share >= -slack) & (share <= 1 + slack)
    share = share.clamp(0, 1)[..., None]
    points = torch.lerp(start[..., ::2], end[..., ::2], share)
    left = torch.where(crossed, points[..., 0], torch.inf).argmin(1)
    right = torch.where(crossed, points[..., 0], -torch.inf).argmax(1)
    ends = torch.stack([left, right], 1)[..., None].expand(-1, -1, 2)
    return torch.gather(points, 1, ends)


def _pixels(ends: Tensor, start: Tensor, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Index of every pixel of the spans, and the inverse depth there; `start` is that of column 0."""
    (left, right), (near_left, near_right) = ends[..., 0].unbind(1), ends[..., 1].unbind(1)
    first, last = _whole(left, right, width)
    slope = (near_right - near_left) / (right - left).clamp(min=EDGE_PIXELS)
    for span, offset in _repeated((last - first + 1).clamp(min=0)):
        column = first[span] + offset
        along = (column - left[span]).clamp(min=0).minimum((right - left)[span])
        yield start[span] + column, near_left[span] + slope[span] * along


def _whole(low: Tensor, high: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First and last whole number between the two, within the image."""
    low, high = low.clamp(-2, size + 1), high.clamp(-2, size + 1)
    first = (low - EDGE_PIXELS).ceil().long().clamp(min=0)
    return first, (high + EDGE_PIXELS).floor().long().clamp(max=size - 1)


def _repeated(counts: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each index as often as its count says, with 0, 1, ... beside it; in pieces of about PIECE."""
    ends = counts.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    borders = torch.arange(0, total + PIECE, PIECE, device=counts.device)
    cuts = torch.searchsorted(ends, borders.clamp(max=total)).tolist()
    cuts[-1:] = [len(counts)]
    for begin, end in pairwise(cuts):
        if begin == end:
            continue
        count = counts[begin:end]
        owner = torch.repeat_interleave(count)
        before = count.cumsum(0) - count
        offset = torch.arange(len(owner), device=counts.device) - before[owner]
        yield owner + begin, offset


STRIDE = 4
"""Pixels from one corner of the sheet to the next."""


def sheet_depth(
    positions: Float[Tensor, "B 3 h w"],
    known: Bool[Tensor, "B h w"],
    torn: Bool[Tensor, "B h w"],
    size: tuple[int, int],
) -> Float[Tensor, "B H W"]:
    """z-depth of the sheet that spans the torn pixels, in images of `size`; infinite where there is none.

    `positions` are those of `moved_pixels`. Triangles with a corner at unknown depth or not in front of the
    camera are left out.
    """
    corners, image = _sheet(positions, known, torn)
    return nearest_triangle_depth(corners, image, len(positions), size)


def _sheet(positions: Tensor, known: Tensor, torn: Tensor) -> tuple[Tensor, Tensor]:
    """Corners [N, 3, 3] and image [N] of two triangles for each grid cell that touches a torn pixel."""
    grid = (positions.shape[2] // STRIDE, positions.shape[3] // STRIDE)
    if min(grid) < 2:
        return positions.new_zeros(0, 3, 3), torch.zeros(0, dtype=torch.long, device=positions.device)
    # Homogeneous positions are linear in the points, so their mean is the position of the mean point.
    vertices = functional.interpolate(positions, size=grid, mode="bilinear", align_corners=False)
    whole = functional.interpolate(
        known[:, None].to(positions.dtype), size=grid, mode="bilinear", align_corners=False
    )[:, 0]
    usable = (whole > 1 - 1e-4) & (vertices[:, 2] > NEAREST_DEPTH)
    touched = functional.interpolate(torn[:, None].to(positions.dtype), size=grid, mode="nearest")[:, 0] > 0
    image, row, column = (_any_corner(touched)).nonzero().unbind(1)
    corners = torch.stack([vertices[image, :, row + y, column + x] for y, x in _CELL], 1)
    fits = torch.stack([usable[image, row + y, column + x] for y, x in _CELL], 1)
    triangles = torch.cat([corners[:, list(three)] for three in _TRIANGLES])
    drawn = torch.cat([fits[:, list(three)].all(1) for three in _TRIANGLES])
    return triangles[drawn], image.repeat(len(_TRIANGLES))[drawn]


_CELL = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Row and column of a cell's corners."""
_TRIANGLES = ((0, 1, 2), (1, 3, 2))
"""Corners of a cell's two triangles."""


def _any_corner(touched: Tensor) -> Tensor:
    """[B, h-1, w-1] where any of a cell's four corners is touched."""
    in_rows = touched[:, :-1] | touched[:, 1:]
    return in_rows[:, :, :-1] | in_rows[:, :, 1:]


LARGEST_EXPONENT = 80.0
"""exp(-80) is a weight that, times any share, float32 still holds."""
ROUNDING_PIXELS = 1e-3
"""Nearer than this to a pixel's centre means on it: by rounding alone a near point would get a share of its
neighbour, and hide what is far there however small the share."""
NEAREST_DEPTH = 1e-4
"""Points nearer than this, or behind the camera, are not seen."""


@dataclass(frozen=True)
class SplatSettings:
    """How points that land on one pixel are mixed."""

    occlusion: Literal["soft", "hard"] = "soft"
    """`soft` weighs points by exp(-sharpness log(1 + z) / log(1 + farthest)), as GEN3C saw in its training;
    `hard` lets only those count that lie near the nearest one."""
    sharpness: float = 50.0
    """How fast the soft weight falls with depth."""
    tolerance: float = 0.01
    """Hard: a point counts if it is no farther than this share behind the nearest."""

    def __post_init__(self) -> None:
        if self.occlusion not in ("soft", "hard"):
            raise ValueError(f"expected soft or hard as occlusion, found {self.occlusion!r}")
        if self.sharpness <= 0 or self.tolerance < 0:
            raise ValueError(
                f"expected a sharpness above 0 and a tolerance of 0 or more, found {self.sharpness} and "
                f"{self.tolerance}"
            )


@dataclass(frozen=True)
class Splatted:
    """What arrived; 0 where nothing did."""

    rgb: Float[Tensor, "B 3 H W"]
    """Colours, mixed by weight."""
    mask: Bool[Tensor, "B H W"]
    """Where anything arrived."""
    depth: Float[Tensor, "B H W"]
    """z-depths, mixed by the same weights."""


def splat(
    rgb: Float[Tensor, "B 3 h w"],
    positions: Float[Tensor, "B 3 h w"],
    usable: Bool[Tensor, "B h w"],
    size: tuple[int, int],
    farthest: Float[Tensor, ""],
    settings: SplatSettings,
) -> Splatted:
    """Images of `size` (H, W) onto which the usable pixels fall.

    `positions` are homogeneous (u z, v z, z) as from `moved_pixels`. `farthest` is the depth that scales the
    soft weights: one per scene, or the picture would depend on how frames are batched
    (docs/reference/gen3c.md, "Warping").
    """
    landed = _landed(positions, usable, size)
    weight = _soft_weight(landed.depth, farthest, settings.sharpness)
    footprint: Iterable[tuple[Tensor, Tensor]] = _footprint(landed, size)
    surface = None
    if settings.occlusion == "hard":
        footprint = list(footprint)  # Read twice.
        surface = _nearest_depth(landed.depth, footprint, size)
    values = [*(channel.flatten() for channel in rgb.unbind(1)), landed.depth.flatten()]
    sums = positions.new_zeros(len(values) + 1, landed.depth.shape[0] * size[0] * size[1])
    for index, share in footprint:
        if surface is None:
            share = share * weight
        else:
            share = share * (landed.depth.flatten() <= surface[index] * (1 + settings.tolerance))
        for total, value in zip(sums, values, strict=False):
            total.scatter_add_(0, index, share * value)
        sums[-1].scatter_add_(0, index, share)
    return _mixed(sums.reshape(len(sums), -1, *size))


def _mixed(sums: Tensor) -> Splatted:
    mask = sums[-1] > 0
    mixed = torch.where(mask, sums[:-1] / sums[-1], 0.0)
    return Splatted(mixed[:3].movedim(0, 1), mask, mixed[3])


@dataclass(frozen=True)
class _Landed:
    """Where points fall: what is outside or unseen has `visible` False and a harmless place."""

    lower: Tensor
    """[2, B, h w] column and row of the upper left of four pixels, integers."""
    fraction: Tensor
    """[2, B, h w] share of the right and of the lower pixels."""
    depth: Tensor
    """[B, h w]; 1 where not visible, so that no weight becomes NaN."""
    visible: Tensor
    """[B, h w]"""


def _landed(positions: Tensor, usable: Tensor, size: tuple[int, int]) -> _Landed:
    positions = positions.flatten(2).movedim(1, 0)
    depth = positions[2]
    visible = usable.flatten(1) & (depth > NEAREST_DEPTH)
    depth = torch.where(visible, depth, 1.0)
    # Far outside is outside: without the bounds a huge quotient would not fit an integer.
    limit = float(max(size) + 1)
    pixels = (positions[:2] / depth - PIXEL_CENTRE).clamp(-2.0, limit)
    nearest = pixels.round()
    pixels = torch.where((pixels - nearest).abs() < ROUNDING_PIXELS, nearest, pixels)
    lower = pixels.floor()
    return _Landed(lower.long(), pixels - lower, depth, visible)


def _footprint(landed: _Landed, size: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
    """For each of the four pixels: its index in the flattened [B, H, W], and the point's share of it."""
    (height, width), (column, row) = size, landed.lower
    images = torch.arange(len(column), device=column.device)[:, None] * (height * width)
    # A point that misses adds zero somewhere: a place of its own, or all would queue for one address.
    elsewhere = images + torch.arange(column.shape[1], device=column.device) % (height * width)
    (right, below), (left, above) = landed.fraction, 1 - landed.fraction
    for down, vertical in ((0, above), (1, below)):
        for across, horizontal in ((0, left), (1, right)):
            x, y = column + across, row + down
            hits = landed.visible & (x >= 0) & (x < width) & (y >= 0) & (y < height)
            index = torch.where(hits, images + y * width + x, elsewhere)
            yield index.flatten(), torch.where(hits, vertical * horizontal, 0.0).flatten()


def _soft_weight(depth: Tensor, farthest: Tensor, sharpness: float) -> Tensor:
    exponent = sharpness * torch.log1p(depth) / torch.log1p(farthest)
    return torch.exp(-exponent.clamp(max=LARGEST_EXPONENT)).flatten()


def _nearest_depth(
    depth: Tensor, footprint: Iterable[tuple[Tensor, Tensor]], size: tuple[int, int]
) -> Tensor:
    """[B H W] depth of the nearest point that touches each pixel, infinite without any."""
    nearest = depth.new_full((len(depth) * size[0] * size[1],), torch.inf)
    for index, share in footprint:
        nearest.scatter_reduce_(0, index, torch.where(share > 0, depth.flatten(), torch.inf), "amin")
    return nearest
