"""Nearest depth of many triangles at every pixel, without trying every pixel against every triangle.

A triangle covers one span of columns in each of its rows. Both steps, triangles to rows and rows to pixels,
are plain repetition, so the work is the number of covered pixels, on any device and for many images at once.
Shape letters: N triangles, B images, H W image.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lyra_ns.generation.cache.geometry import PIXEL_CENTRE

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
