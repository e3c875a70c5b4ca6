"""Small packs of pictures for tests: smooth random pictures, each unlike the others."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import numpy
from numpy.typing import NDArray
from PIL import Image

from lyra_ns.data.picture_pack import PictureSource, write_pack


def smooth_picture(seed: int, height: int = 72, width: int = 96, channels: int = 3) -> NDArray[numpy.uint8]:
    """A blurred picture of random colours: like a photograph, it survives JPEG and resizing."""
    random = numpy.random.default_rng(seed)
    coarse = random.integers(0, 256, (6, 8, channels), dtype=numpy.uint8)
    mode = "RGB" if channels == 3 else "RGBA"
    return numpy.array(Image.fromarray(coarse, mode).resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: NDArray[numpy.uint8], file_format: str = "JPEG", quality: int = 90) -> bytes:
    """The picture as a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format, quality=quality)
    return file.getvalue()


def source_of(content: bytes, file: str = "usr/share/a.jpg") -> PictureSource:
    """An invented source of a stored picture, different for different pictures."""
    digest = hashlib.sha256(content).hexdigest()
    return PictureSource("a-package", "1.0", file, "CC0-1.0", digest, digest)


def write_small_pack(path: Path, pictures: Mapping[str, bytes]) -> Path:
    """A pack of these pictures."""
    write_pack(path, pictures, {name: source_of(content, name) for name, content in pictures.items()})
    return path


def small_pack(path: Path, num_photographs: int = 40, num_textures: int = 40, num_cutouts: int = 3) -> Path:
    """A pack of random pictures of all kinds."""
    pictures = {}
    for number in range(num_photographs):
        size = ((72, 96), (96, 72), (80, 80))[number % 3]
        pictures[f"photographs/{number:03d}.jpg"] = encoded(smooth_picture(number, *size))
    for number in range(num_textures):
        pictures[f"textures/{number:03d}.jpg"] = encoded(smooth_picture(1000 + number, 64, 64))
    for number in range(num_cutouts):
        pictures[f"cutouts/{number:03d}.webp"] = encoded(smooth_picture(2000 + number, 48, 40, 4), "WEBP")
    return write_small_pack(path, pictures)
