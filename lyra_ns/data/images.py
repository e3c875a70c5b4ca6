"""Photographs as they lie on disk, whatever their kind: upright, on white, in 8 bits, at the size of use.

Shape letters: H W image.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lyra_ns.data.video import VideoSize

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".avif")
"""Endings that are taken for images."""
LEAST_SIDE = 64
"""Images with a shorter side show too little to make a scene of."""
MOST_ASPECT = 3.0
"""Images with a longer side beyond this many shorter ones lose most of themselves to the crop."""
EXIF_FOLDER, FOCAL_35MM = 0x8769, 0xA405
"""Tags of cameras' notes inside a picture: where they stand, and the focal length on 35 mm film."""
FILM_DIAGONAL = math.hypot(36.0, 24.0)
"""Millimetres across the frame of 35 mm film, by which focal lengths on it are converted."""
SIXTEEN_BITS = 65535


@dataclass(frozen=True)
class ImageFile:
    """An image and what its file says about it."""

    rgb: UInt8[Tensor, "3 H W"]
    """Colours, upright."""
    focal_share: float | None
    """Focal length over image width by the camera's own note (EXIF); None where there is none."""
    notes: tuple[str, ...]
    """What was done to the picture beyond reading it, in words for the user."""


def read_image(path: Path) -> ImageFile:
    """The image of a file: turned as its EXIF says, transparency laid over white, 16 bits brought to 8.

    FileNotFoundError; ValueError for what is unreadable, cut short, of floating-point values, wholly
    transparent, smaller than 64 pixels on a side, or longer than three times its width.
    """
    if not path.is_file():
        raise FileNotFoundError(f"image {path} does not exist: give the path of a picture")
    notes: list[str] = []
    with _opened(path) as image:
        num_pictures = getattr(image, "n_frames", 1)
        if num_pictures > 1:
            notes.append(f"first of its {num_pictures} pictures taken")
        focal = image.getexif().get_ifd(EXIF_FOLDER).get(FOCAL_35MM)
        upright = ImageOps.exif_transpose(image)
        if upright.size != image.size or image.getexif().get(0x0112, 1) != 1:
            notes.append("turned upright as its EXIF says")
        pixels = _eight_bit_rgb(upright, path, notes)
    check_size(pixels.shape[0], pixels.shape[1], f"image {path}")
    rgb = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    return ImageFile(rgb, _focal_share(focal, pixels.shape[0], pixels.shape[1]), tuple(notes))


def check_size(height: int, width: int, name: str) -> None:
    """ValueError for pictures too small or too long to make a scene of; `name` says what they are."""
    if min(height, width) < LEAST_SIDE:
        raise ValueError(
            f"{name} must have at least {LEAST_SIDE} pixels on each side, found {width} x {height} (width x "
            "height): give a larger picture"
        )
    if max(height, width) > MOST_ASPECT * min(height, width):
        raise ValueError(
            f"{name} must not be longer than {MOST_ASPECT:g} times its other side, found {width} x {height} "
            "(width x height), of which the crop would leave too little: cut out the part you want first"
        )


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The decoded picture; what is wrong with the file becomes one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                yield image
    except UnidentifiedImageError as error:
        raise ValueError(
            f"image {path} must be a PNG, JPEG, WebP, TIFF or another kind that Pillow reads, found none of "
            "them: save it as PNG or JPEG"
        ) from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"image {path} is too large to be read ({error}): make it smaller first") from error
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(
            f"image {path} must be whole, found damage ({str(error) or type(error).__name__}): copy or save "
            "it again"
        ) from error


def _eight_bit_rgb(image: Image.Image, path: Path, notes: list[str]) -> UInt8[np.ndarray, "H W 3"]:
    """Colours of any mode of Pillow; appends to `notes` what that took."""
    if image.mode == "F":
        raise ValueError(
            f"image {path} must hold 8 or 16 bits per colour, found floating-point values, whose range is "
            "unknown: save it as PNG"
        )
    if image.mode.startswith("I"):
        notes.append("16-bit grey brought to 8 bits")
        image = _from_sixteen_bits(image, path)
    if image.has_transparency_data:
        return np.array(_over_white(image, path, notes))
    named = {"L": "grey taken as colour", "1": "black and white taken as colour", "CMYK": "CMYK converted"}
    if image.mode in named:
        notes.append(named[image.mode])
    return np.array(image.convert("RGB"))


def _from_sixteen_bits(image: Image.Image, path: Path) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > SIXTEEN_BITS:
        raise ValueError(
            f"image {path} must hold values of 8 or 16 bits, found {values.min()} to {values.max()}: save it "
            "as PNG"
        )
    return Image.fromarray((values * 255 / SIXTEEN_BITS).round().astype(np.uint8))


def _over_white(image: Image.Image, path: Path, notes: list[str]) -> Image.Image:
    """Transparent parts become white, as viewers and web pages show them."""
    colours = image.convert("RGBA")
    alpha = np.asarray(colours.getchannel("A"))
    if not alpha.any():
        raise ValueError(f"image {path} must show something, found it wholly transparent: save it opaque")
    if (alpha < 255).any():
        notes.append("transparent parts laid over white")
    white = Image.new("RGBA", colours.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, colours).convert("RGB")


def _focal_share(focal_35mm: object, height: int, width: int) -> float | None:
    """Focal length over width of an upright image from that on 35 mm film (CIPA: by the diagonal)."""
    try:
        millimetres = float(focal_35mm)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    if not 5.0 <= millimetres <= 1000.0:
        return None
    return millimetres / FILM_DIAGONAL * math.hypot(height, width) / width


FINER = 2
"""Small clips are warped from a picture of so many times their size, so that splatting does not blur them."""
FINER_UP_TO = 512
"""Longest side of clips, in pixels, that this is done for."""


def finer_size(given: tuple[int, int], size: VideoSize) -> tuple[int, int]:
    """Height and width at which a picture is kept: the clip's, or twice that for small clips of large."""
    has_enough = given[0] >= FINER * size.height and given[1] >= FINER * size.width
    times = FINER if has_enough and max(size.height, size.width) <= FINER_UP_TO else 1
    return times * size.height, times * size.width
