"""Which size clips get, so that all of a picture is in them: its aspect, about the usual number of pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lyra_ns.data.video_files import VideoSize

MULTIPLE = 16
"""Pixels of a latent cell times those that decoders join: sides of clips are multiples of this."""
AREA_TOLERANCE = 1 / 8
"""Share by which the pixels of a clip may be more or fewer than usual: so much memory and time."""
LONGEST_ASPECT = 2.4
"""Clips are at most so many times as long as their other side (cinema): decoders know no longer ones."""


def size_of_aspect(aspect: float, area: float, multiple: int = MULTIPLE) -> tuple[int, int]:
    """(height, width) in multiples of `multiple` whose width is about `aspect` times its height.

    Of all sizes with `area` pixels, give or take AREA_TOLERANCE, the one closest in aspect, and of several
    the one closest in area; where none is so close in area, the closest in area. ValueError unless both are
    above 0.
    """
    if not (0 < aspect < math.inf and 0 < area < math.inf):
        raise ValueError(f"expected an aspect and an area above 0, found {aspect:g} and {area:g}")
    num_cells = area / multiple**2

    def off(rows: int, columns: int) -> tuple[float, float, float]:
        in_area = abs(rows * columns / num_cells - 1)
        in_aspect = abs(math.log(columns / rows / aspect))
        beyond = max(in_area - AREA_TOLERANCE, 0.0)
        # Rounded, or the same aspect of two sizes would differ in its last digits.
        return round(beyond, 9), round(in_aspect, 9), in_area

    longest = math.ceil(num_cells * (1 + AREA_TOLERANCE))
    sizes = ((rows, columns) for rows in range(1, longest + 1) for columns in _widths(rows, num_cells))
    rows, columns = min(sizes, key=lambda size: off(*size))
    return rows * multiple, columns * multiple


def _widths(rows: int, num_cells: float) -> range:
    """Numbers of columns that bring so many rows into the tolerated area, and the closest ones beside it."""
    fewest = math.floor(num_cells * (1 - AREA_TOLERANCE) / rows)
    return range(max(1, fewest), math.ceil(num_cells * (1 + AREA_TOLERANCE) / rows) + 1)


@dataclass(frozen=True)
class ClipSizes:
    """The sizes that clips may have, before it is known of what picture they are made."""

    usual: VideoSize
    """Size for which a decoder was trained, or that was asked for."""
    keeps_aspect: bool = False
    """Whether clips take the aspect of their picture, or all have the usual size."""

    def of_picture(self, height: int, width: int) -> VideoSize:
        """The size of the clips of a picture."""
        if not self.keeps_aspect:
            return self.usual
        aspect = min(max(width / height, 1 / LONGEST_ASPECT), LONGEST_ASPECT)
        rows, columns = size_of_aspect(aspect, self.usual.height * self.usual.width)
        return replace(self.usual, height=rows, width=columns)
