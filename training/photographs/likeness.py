"""How alike pictures are, whatever was done to them: resized, encoded again, cut, stretched or dimmed.

A picture is compared with windows of another one by tiny thumbnails of grey, mean and contrast taken out, and the
windows that look alike are moved and scaled until they look most alike. A copy ends near 1, other pictures far
below. Mirrored and turned copies are not found.

Shape letters: P pictures, N windows, T pixels of a thumbnail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray
from PIL import Image

Box = tuple[float, float, float, float]

COARSE, FINE = 12, 32
"""Sides of the thumbnails that find windows, and of those that judge them."""
COPY = 0.93
"""Least likeness of a copy: JPEG of quality 30 leaves 0.99, a window found half a pixel beside its place 0.95;
the most alike of different photographs reach 0.9."""
WORTH_A_LOOK = 0.72
"""Least coarse likeness of windows that are looked at more closely."""
WINDOWS_LOOKED_AT = 4
"""Windows of one picture that are looked at more closely for another one."""
SHARES = (1.0, 0.84, 0.71, 0.6, 0.5, 0.42, 0.35)
"""Sizes of windows, as shares of the largest that fits."""
RATIOS = (0.56, 0.75, 1.0, 1.33, 1.6, 1.78)
"""Width by height of windows, besides that of the picture."""
STEPS = 5
"""Places of a window along the side on which it has most room."""
LONGEST = 512
"""Pictures are compared at this length of their longer side or less."""


@dataclass(frozen=True)
class Likeness:
    """The window of a picture that is most like another picture."""

    value: float
    """Correlation of thumbnails, at most 1."""
    box: Box
    """The window, in pixels of the picture as it was given."""


def comparable(image: Image.Image) -> Image.Image:
    """The picture in grey at the size at which pictures are compared; transparent parts are grey."""
    if image.mode in ("RGBA", "LA", "PA", "P"):
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (128, 128, 128, 255)), rgba)
    grey = image.convert("L")
    grey.thumbnail((LONGEST, LONGEST), Image.Resampling.BILINEAR)
    return grey


def coarse_thumbnails(images: Sequence[Image.Image]) -> NDArray[numpy.float32]:
    """Thumbnails [P, T] of whole comparable pictures."""
    return numpy.stack([_thumbnail(image, (0.0, 0.0, *image.size), COARSE) for image in images])


def windows_of(image: Image.Image) -> tuple[list[Box], NDArray[numpy.float32]]:
    """Windows of a comparable picture, from all of it to a third, and their coarse thumbnails [N, T]."""
    boxes: list[Box] = [(0.0, 0.0, *image.size)]
    width, height = image.size
    for ratio in (width / height, *RATIOS):
        for share in SHARES:
            across = share * min(width, height * ratio)
            boxes += _places(width, height, across, across / ratio)
    return boxes, numpy.stack([_thumbnail(image, box, COARSE) for box in boxes])


def most_alike(
    image: Image.Image,
    boxes: Sequence[Box],
    windows: NDArray[numpy.float32],
    other: Image.Image,
    other_thumbnail: NDArray[numpy.float32],
) -> Likeness:
    """The window of `image` most like all of `other`, both comparable; value 0 where none is worth a look."""
    coarse = windows @ other_thumbnail
    best = Likeness(0.0, boxes[0])
    for index in numpy.argsort(-coarse, kind="stable")[:WINDOWS_LOOKED_AT]:
        if coarse[index] < WORTH_A_LOOK:
            break
        found = _climbed(image, boxes[index], _thumbnail(other, (0.0, 0.0, *other.size), FINE))
        best = max(best, found, key=lambda likeness: likeness.value)
    return best


def _places(width: int, height: int, across: float, down: float) -> list[Box]:
    """Windows of one size, spread over a picture."""
    spare_x, spare_y = width - across, height - down
    num_x, num_y = (1 + round((STEPS - 1) * min(1.0, 2 * spare / side)) for spare, side in
                    ((spare_x, across), (spare_y, down)))  # fmt: skip
    lefts = numpy.linspace(0, spare_x, num_x) if num_x > 1 else [spare_x / 2]
    tops = numpy.linspace(0, spare_y, num_y) if num_y > 1 else [spare_y / 2]
    return [(float(x), float(y), float(x + across), float(y + down)) for y in tops for x in lefts]


def _climbed(image: Image.Image, box: Box, target: NDArray[numpy.float32]) -> Likeness:
    """The best window near one, found by moving its sides, in smaller and smaller steps."""
    best = Likeness(float(_thumbnail(image, box, FINE) @ target), box)
    step = 0.08
    while step > 0.004:
        moved = max((_moved(image, best.box, step, target)), key=lambda likeness: likeness.value)
        if moved.value > best.value + 1e-4:
            best = moved
        else:
            step /= 2
    return best


def _moved(image: Image.Image, box: Box, step: float, target: NDArray[numpy.float32]) -> list[Likeness]:
    """Windows that were moved, scaled and stretched by `step` of their size."""
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
        new_right, new_bottom = min(float(image.width), right + move[2]), min(float(image.height), bottom + move[3])
        if new_right - new_left >= 8 and new_bottom - new_top >= 8:
            moved = (new_left, new_top, new_right, new_bottom)
            found.append(Likeness(float(_thumbnail(image, moved, FINE) @ target), moved))
    return found


def _thumbnail(image: Image.Image, box: Box, side: int) -> NDArray[numpy.float32]:
    """A window as a vector [T] of length 1 and mean 0; all 0 where it is of one colour."""
    pixels = numpy.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box), numpy.float32).ravel()
    pixels = pixels - pixels.mean()
    length = float(numpy.linalg.norm(pixels))
    return pixels / length if length > 2.0 * side else numpy.zeros_like(pixels)
