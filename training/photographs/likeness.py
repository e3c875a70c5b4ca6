"""How alike pictures are, whatever was done to them: resized, encoded again, cut, stretched or dimmed.

A picture is held against windows of another one by tiny thumbnails of grey. Those windows that look alike
roughly are moved and scaled until they fit best, and judged by detail alone: all skies and all portraits have
the same broad light and shade, but only copies have the same detail. Mirrored and turned copies are not
found, nor most of those that show less than a third.

Shape letters: P pictures, N windows, T pixels of a thumbnail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray
from PIL import Image

Box = tuple[float, float, float, float]

FINE = 16
"""Side of thumbnails."""
COARSE = 8
"""Side to which they are averaged to find windows."""
BLOCK = 4
"""Side of the blocks of a thumbnail whose mean and slope are no detail."""
COPY = 0.91
"""Least likeness of what may be a copy.

Whole pictures of scikit-image, shrunk, stretched and encoded at quality 40, reach 0.98; cut-outs of half a
side and more 0.92, where their window is found (seven of ten are, textures least). Other photographs reach
0.75, but where two edges are all the detail there is, as of a plain wall between two pillars, others reach
0.97.
"""
LARGE = 48
"""Side of the thumbnails by which a second look tells those."""
LARGE_COPY = 0.8
"""Least likeness of a copy at the second look.

Those above reach 0.83, of 29 walls, cards and shutters 27 less than 0.75; the other two, white cards on
black, are like each other to the eye, too.
"""
FITS = 0.9
"""Least likeness with light and shade of the window that is judged by its detail."""
WORTH_A_LOOK = 0.8
"""Least coarse likeness of windows that are looked at more closely."""
WINDOWS_LOOKED_AT = 2
"""Windows of one picture that are looked at more closely for another one."""
SHARES = (1.0, 0.84, 0.71, 0.6, 0.5, 0.42, 0.35)
"""Sizes of windows, as shares of the largest that fits."""
RATIOS = (0.56, 0.75, 1.0, 1.33, 1.6, 1.78)
"""Width by height of windows, besides that of the picture."""
PLACES = 5
"""Places of a window along the side on which it has most room."""
LEAST_SHARE = 0.25
"""Of the sides of a picture, that a window has."""
FLAT = 1.0
"""Standard deviation of detail, out of 255, up to which there is none: nothing is a copy of fog."""
LONGEST = 256
"""Pictures are compared at this length of their longer side or less."""

_SLOPE = numpy.linspace(-1, 1, BLOCK)
PLANES = numpy.linalg.qr(
    numpy.stack([numpy.ones(BLOCK**2), numpy.tile(_SLOPE, BLOCK), numpy.repeat(_SLOPE, BLOCK)], axis=1)
)[0].astype(numpy.float32)
"""Mean and slopes of a block [BLOCK * BLOCK, 3], orthonormal."""


@dataclass(frozen=True)
class Likeness:
    """How like another picture a window is."""

    value: float
    """Correlation of detail, at most 1."""
    box: Box
    """The window, in pixels of the comparable picture."""


def comparable(image: Image.Image) -> Image.Image:
    """The picture in grey at the size at which pictures are compared; transparent parts are grey."""
    if image.mode in ("RGBA", "LA", "PA", "P"):
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (128, 128, 128, 255)), rgba)
    grey = image.convert("L")
    grey.thumbnail((LONGEST, LONGEST), Image.Resampling.BILINEAR)
    return grey


def thumbnail(image: Image.Image, box: Box | None = None, side: int = FINE) -> NDArray[numpy.float32]:
    """Grey values [T] of a window of a comparable picture, or of all of it."""
    small = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
    return numpy.asarray(small, numpy.float32).ravel()


def coarse(thumbnails: NDArray[numpy.float32]) -> NDArray[numpy.float32]:
    """What finds windows, of thumbnails [..., T]: of mean 0 and length 1, or 0 where they are flat."""
    block = FINE // COARSE
    blocks = thumbnails.reshape(*thumbnails.shape[:-1], COARSE, block, COARSE, block)
    values = blocks.mean((-3, -1), dtype=numpy.float32).reshape(*thumbnails.shape[:-1], COARSE**2)
    return _unit(values - values.mean(-1, keepdims=True))


def detail(thumbnails: NDArray[numpy.float32]) -> NDArray[numpy.float32]:
    """What windows are judged by, of thumbnails [..., T]: vectors of length 1, or 0 where there is none.

    It is what is left of blocks without their mean and slope, so that smooth shading, too, is no detail.
    """
    num_blocks = round(thumbnails.shape[-1] ** 0.5) // BLOCK
    blocks = thumbnails.reshape(*thumbnails.shape[:-1], num_blocks, BLOCK, num_blocks, BLOCK)
    blocks = blocks.swapaxes(-3, -2).reshape(*thumbnails.shape[:-1], num_blocks**2, BLOCK**2)
    return _unit((blocks - blocks @ PLANES @ PLANES.T).reshape(thumbnails.shape))


def windows_of(image: Image.Image) -> tuple[list[Box], NDArray[numpy.float32]]:
    """Windows of a comparable picture, from all of it to a third, and their thumbnails [N, T]."""
    boxes: list[Box] = [(0.0, 0.0, *image.size)]
    width, height = image.size
    for ratio in (width / height, *RATIOS):
        for share in SHARES:
            across = share * min(width, height * ratio)
            boxes += _places(width, height, across, across / ratio)
    return boxes, numpy.stack([thumbnail(image, box) for box in boxes])


def most_alike(
    image: Image.Image,
    boxes: Sequence[Box],
    likenesses: NDArray[numpy.float32],
    other: NDArray[numpy.float32],
) -> Likeness:
    """The window of `image` that another picture's thumbnail [T] fits best.

    `likenesses` [N] are coarse ones of the windows `boxes`. The value is 0 where none is worth a look.
    """
    best, target = Likeness(0.0, boxes[0]), (_unit(other - other.mean()), detail(other))
    for index in numpy.argsort(-likenesses, kind="stable")[:WINDOWS_LOOKED_AT]:
        if likenesses[index] < WORTH_A_LOOK:
            break
        found = _fitted(image, boxes[index], *target)
        best = max(best, found, key=lambda likeness: likeness.value)
    return best


def holds_at_second_look(image: Image.Image, box: Box, other: NDArray[numpy.float32]) -> bool:
    """Whether a window is like another picture's large thumbnail, too; yes where one has no detail."""
    details = detail(thumbnail(image, box, LARGE)), detail(other)
    return not all(map(numpy.any, details)) or bool(details[0] @ details[1] >= LARGE_COPY)


def _fitted(
    image: Image.Image, box: Box, whole: NDArray[numpy.float32], details: NDArray[numpy.float32]
) -> Likeness:
    """The best window near one, and its likeness by detail, 0 if none fits.

    First all of the picture is fitted in large steps, which lead there from afar, then its detail in small
    ones.
    """

    def by_all(values: NDArray[numpy.float32]) -> float:
        return float(_unit(values - values.mean()) @ whole)

    def by_detail(values: NDArray[numpy.float32]) -> float:
        return float(detail(values) @ details)

    fit, box = _climbed(image, box, by_all, 0.08, 0.015)
    if fit < FITS:
        return Likeness(0.0, box)
    return Likeness(*_climbed(image, box, by_detail, 0.02, 0.004))


def _climbed(
    image: Image.Image,
    box: Box,
    measure: Callable[[NDArray[numpy.float32]], float],
    step: float,
    smallest: float,
) -> tuple[float, Box]:
    """The best value of a measure of thumbnails, and its window, moved in steps from large to small."""
    value = measure(thumbnail(image, box))
    while step > smallest:
        values = [(measure(thumbnail(image, moved)), moved) for moved in _moved(image.size, box, step)]
        best = max(values, default=(value, box))
        if best[0] > value + 1e-4:
            value, box = best
        else:
            step /= 2
    return value, box


def _places(width: int, height: int, across: float, down: float) -> list[Box]:
    """Windows of one size, spread over a picture."""
    starts = []
    for side, length in ((width, across), (height, down)):
        spare = max(0.0, side - length)
        num_places = 1 + round((PLACES - 1) * min(1.0, 2 * spare / side))
        starts.append(numpy.linspace(0, spare, num_places).tolist() if num_places > 1 else [spare / 2])
    return [
        (left, top, min(left + across, float(width)), min(top + down, float(height)))
        for top in starts[1]
        for left in starts[0]
    ]


def _moved(size: tuple[int, int], box: Box, step: float) -> list[Box]:
    """The window moved, scaled and stretched by `step` of its size, within a picture of a size."""
    left, top, right, bottom = box
    across, down = step * (right - left), step * (bottom - top)
    moves = [
        (across, 0, across, 0), (-across, 0, -across, 0), (0, down, 0, down), (0, -down, 0, -down),
        (-across, -down, across, down), (across, down, -across, -down),
        (-across, 0, across, 0), (across, 0, -across, 0), (0, -down, 0, down), (0, down, 0, -down),
    ]  # fmt: skip
    found = []
    for move in moves:
        new_left, new_top = max(0.0, left + move[0]), max(0.0, top + move[1])
        new_right, new_bottom = min(float(size[0]), right + move[2]), min(float(size[1]), bottom + move[3])
        if new_right - new_left >= LEAST_SHARE * size[0] and new_bottom - new_top >= LEAST_SHARE * size[1]:
            found.append((new_left, new_top, new_right, new_bottom))
    return found


def _unit(values: NDArray[numpy.float32]) -> NDArray[numpy.float32]:
    """Vectors [..., V] of length 1, or 0 where they are flat."""
    length = numpy.linalg.norm(values, axis=-1, keepdims=True)
    return numpy.where(length > FLAT * values.shape[-1] ** 0.5, values / numpy.maximum(length, 1e-6), 0)
