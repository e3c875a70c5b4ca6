"""Held-out photographs as they are carried to other machines: middles of one size as JPEG, in one small file.

Decoders are judged on these, packed or not, so that every machine has the same pixels.

Shape letters: H W image.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load, save

from benchmarks.photographs.crops import Crop
from benchmarks.photographs.held_out import Picture
from lyra_ns.data.atomic import write_whole

HEIGHT, WIDTH = 480, 768
"""Size of a packed photograph."""
QUALITY = 85
"""Its JPEG quality."""


def packed(picture: Picture) -> bytes:
    """The middle of a photograph as JPEG."""
    buffer = io.BytesIO()
    middle = Crop.of_aspect(picture, HEIGHT, WIDTH).resized(picture, HEIGHT, WIDTH)
    middle.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def unpacked(jpeg: bytes) -> Picture:
    """Colours of a packed photograph."""
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def write_pack(photographs: Mapping[str, bytes], path: Path) -> None:
    """Writes packed photographs by their names into one safetensors file."""
    write_whole(path, save({name: np.frombuffer(jpeg, np.uint8) for name, jpeg in photographs.items()}))


def read_pack(path: Path) -> dict[str, bytes]:
    """The photographs of a file of `write_pack`; FileNotFoundError, or ValueError for other files."""
    if not path.is_file():
        raise FileNotFoundError(f"no packed photographs at {path}: write them with --pack-held-out")
    try:
        return {name: jpeg.tobytes() for name, jpeg in load(path.read_bytes()).items()}
    except SafetensorError as error:
        raise ValueError(
            f"expected photographs that --pack-held-out wrote in {path}, found none ({error}): write it anew"
        ) from error
