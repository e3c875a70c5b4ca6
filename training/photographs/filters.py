"""Which pictures are worth training on: no documents, drawings, icons, maps of normals or sheets of parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
from numpy.typing import NDArray
from PIL import Image

from lyra_ns.data.picture_pack import Kind

LEAST_DEVIATION = 16.0
"""Of the brightness of a small copy, out of 255: flatter pictures teach nothing."""
MOST_WHITE = 0.35
"""Share of near-white pixels above which a photograph is taken for a document or a thing cut out on paper."""
MOST_OF_ONE_COLOUR = 0.2
"""Share of pixels of exactly one colour above which it is a drawing, a frame or a sheet of parts."""
LEAST_DETAIL = 4.0
"""Mean step of brightness between neighbours of a texture at 128 pixels."""
MOST_BLUENESS = 0.6
"""Share of pixels near the blue (128, 128, 255) that maps of normals are made of."""
SMALLEST_TEXTURE, SMALLEST_CUTOUT = 256, 120
"""Shortest sides in pixels."""
LEAST_COLOURS = 300
"""Of the 32768 that a cut-out of 100 pixels shows: drawings have fewer."""
LEAST_EMPTY = 0.08
"""Share of a cut-out that is transparent."""
DUPLICATE = 4.0
"""Mean difference of 8x8 thumbnails, out of 255, below which a picture is taken for one that was seen."""

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
NO_SURFACES = (
    "norm", "_n.", "_s.", "_h.", "gloss", "spec", "_nm", "nrm", "mask", "height", "bump", "glow", "lightmap",
    "font", "gui", "hud", "icon", "logo", "emblem", "flags", "banner", "crosshair", "minimap", "screenshot",
    "preview", "gfx", "particle", "textures/weap", "/tools", "noise", "license",
)  # fmt: skip
"""In paths of games' pictures that are no surfaces as the eye sees them."""


def is_worth_decoding(kind: Kind, path: str) -> bool:
    """Whether a file may be a picture of a kind, by its path."""
    name = path.lower()
    return name.endswith(ENDINGS) and not (kind == "textures" and any(part in name for part in NO_SURFACES))


def is_photograph(image: Image.Image) -> bool:
    """Whether a picture has the contrast and the colours of a photograph."""
    small = numpy.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR), numpy.float32)
    is_white = (small.min(-1) > 240).mean() > MOST_WHITE
    return (
        bool(small.std() >= LEAST_DEVIATION and not is_white) and _commonest_share(image) < MOST_OF_ONE_COLOUR
    )


def is_texture(image: Image.Image) -> bool:
    """Whether a picture is a square, opaque surface with detail, as the eye would see it."""
    if image.width != image.height or image.width < SMALLEST_TEXTURE:
        return False
    if image.mode == "RGBA" and numpy.asarray(image)[..., 3].min() < 250:
        return False
    small = numpy.asarray(image.convert("RGB").resize((128, 128), Image.Resampling.BOX), numpy.float32)
    grey = small.mean(-1)
    near_blue = numpy.abs(small - numpy.array([128, 128, 255])).max(-1) < 70
    has_contrast = small.std() >= LEAST_DEVIATION and numpy.abs(numpy.diff(grey)).mean() >= LEAST_DETAIL
    return bool(has_contrast and near_blue.mean() < MOST_BLUENESS) and _commonest_share(image) < 0.05


def is_cutout(image: Image.Image) -> bool:
    """Whether a picture is a photographed thing before nothing."""
    if image.mode != "RGBA" or min(image.size) < SMALLEST_CUTOUT:
        return False
    step = max(1, min(image.size) // 100)
    pixels = numpy.asarray(image)[::step, ::step]
    is_empty = pixels[..., 3] < 40
    solid = pixels[..., :3][pixels[..., 3] > 200]
    return (
        bool(is_empty.mean() >= LEAST_EMPTY and len(solid) >= 1000) and _num_colours(solid) >= LEAST_COLOURS
    )


FILTERS: dict[Kind, Callable[[Image.Image], bool]] = {
    "photographs": is_photograph, "textures": is_texture, "cutouts": is_cutout,
}  # fmt: skip


class SeenPictures:
    """Remembers pictures, to know one that looks the same."""

    def __init__(self) -> None:
        self._thumbnails: list[NDArray[numpy.float32]] = []

    def holds(self, image: Image.Image) -> bool:
        """Whether a picture looks like an earlier one; if not, it is remembered."""
        grey = image.convert("RGBA").convert("L").resize((8, 8), Image.Resampling.BOX)
        thumbnail = numpy.asarray(grey, numpy.float32)
        if any(numpy.abs(thumbnail - other).mean() < DUPLICATE for other in self._thumbnails):
            return True
        self._thumbnails.append(thumbnail)
        return False


def _commonest_share(image: Image.Image) -> float:
    """Share of the pixels that have the commonest colour."""
    step = max(1, min(image.size) // 200)
    colours = _packed(numpy.asarray(image.convert("RGB"))[::step, ::step])
    return float(numpy.unique(colours, return_counts=True)[1].max() / len(colours))


def _num_colours(pixels: NDArray[numpy.uint8]) -> int:
    """How many colours there are, at five bits a channel."""
    return len(numpy.unique(_packed(pixels // 8)))


def _packed(pixels: NDArray[numpy.integer[Any]]) -> NDArray[numpy.int64]:
    """One number for each colour."""
    return pixels.reshape(-1, 3).astype(numpy.int64) @ numpy.array([1 << 16, 1 << 8, 1])
