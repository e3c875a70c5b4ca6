"""Pictures of a pack from files of packages: decoded, cut, resized and encoded, the same way every time.

Lengths are in pixels, boxes are left, top, right and bottom in pixels of the decoded file.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from lyra_ns.data.picture_pack import FOLDER_FORMATS, Kind

Box = tuple[float, float, float, float]

SIDE = 256
"""Of textures, and longest of cut-outs."""
BEHIND = (128, 160, 200, 255)
"""Colour behind transparent parts of photographs: horizons with the sky cut off."""
QUALITY: dict[Kind, int] = {"photographs": 71, "textures": 72, "cutouts": 75}
"""Of the encoders; 30 KB for a photograph of 576x360."""


@dataclass(frozen=True)
class View:
    """What of a file becomes a picture, and how large; textures and cut-outs are taken whole."""

    box: Box
    """What is cut out."""
    size: tuple[int, int]
    """Width and height of the picture."""


def decode(content: bytes) -> Image.Image:
    """A picture file, decoded: RGB, or RGBA where it has opacity. ValueError if it is damaged."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            has_opacity = opened.mode in ("RGBA", "LA", "P", "PA")
            return opened.convert("RGBA" if has_opacity else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot be decoded ({error})") from error


def make_picture(kind: Kind, image: Image.Image, view: View | None) -> bytes:
    """The file of a picture in the pack."""
    if kind == "photographs":
        if view is None:
            raise ValueError("a photograph needs a view")
        return _encode(kind, on_sky(image).resize(view.size, Image.Resampling.LANCZOS, box=view.box))
    if kind == "textures":
        return _encode(kind, image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    small = image.convert("RGBA")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return _encode(kind, small)


def on_sky(image: Image.Image) -> Image.Image:
    """The picture without opacity, on the colour of a sky."""
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, BEHIND), image).convert("RGB")


def _encode(kind: Kind, image: Image.Image) -> bytes:
    file = io.BytesIO()
    if FOLDER_FORMATS[kind] == "JPEG":
        image.save(file, "JPEG", quality=QUALITY[kind], optimize=True, subsampling="4:2:0")
    else:
        image.save(file, "WEBP", quality=QUALITY[kind], method=6)
    return file.getvalue()
