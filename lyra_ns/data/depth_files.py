"""Depth files: a zip of EXR images, one per frame, each of which OpenEXR reads and writes from memory.

Source: docs/reference/data_layout.md, "Files". One channel in, one channel out; written is ZIP.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.data.atomic import Source

MAGIC = b"\x76\x2f\x31\x01"
MOST_PIXELS_PER_BYTE = 2**16
"""A header that declares more than this is damaged; an image of zeros has some hundreds."""


def read_exr(content: bytes, channel: str = "Z") -> np.ndarray:
    """One channel of an EXR file as float32 [H, W]: the named one, or the first if there is none so called.

    ValueError for files that are damaged or hold no such image.
    """
    if not content.startswith(MAGIC):
        raise ValueError("expected an OpenEXR file, found other data: write depth as EXR")
    try:
        height, width = _declared_size(content)
        images = _channels(content)
    except (RuntimeError, ValueError, TypeError, KeyError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"EXR data is damaged or cut short ({reason}): write the file again") from error
    if not images:
        raise ValueError("expected an EXR file with a channel Z, found no channel: write the depth into one")
    image = images.get(channel, next(iter(images.values())))
    if image.shape != (height, width) or image.dtype.hasobject:
        raise ValueError(
            f"expected an EXR channel of {height} x {width} numbers, found {image.dtype} of shape "
            f"{image.shape}: write scan lines at full size"
        )
    return image.astype(np.float32)


def _declared_size(content: bytes) -> tuple[int, int]:
    """(height, width) of the header, before anything of that size is allocated."""
    import OpenEXR  # a third of a second, for which only depth should wait

    with OpenEXR.File(io.BytesIO(content), header_only=True, num_threads=0) as file:
        start, end = file.header()["dataWindow"]
    width, height = (int(last) - int(first) + 1 for first, last in zip(start, end, strict=True))
    if height * width > MOST_PIXELS_PER_BYTE * len(content):
        raise ValueError(f"{height} x {width} pixels in {len(content)} bytes")
    return height, width


def _channels(content: bytes) -> dict[str, np.ndarray]:
    """The pixels of the first part by channel; ValueError where one block cannot be decoded."""
    import OpenEXR

    with OpenEXR.File(io.BytesIO(content), separate_channels=True, num_threads=0) as file:
        # Where a block is damaged OpenEXR tells the standard output and leaves the part out.
        if not file.parts:
            raise ValueError("a block of its pixels cannot be decoded")
        return {name: found.pixels for name, found in file.channels().items()}


def write_exr(image: np.ndarray) -> bytes:
    """An EXR file with channel Z from a float16 or float32 image [H, W]."""
    if image.ndim != 2 or image.dtype not in (np.float16, np.float32):
        raise ValueError(f"expected a float16 or float32 image [H, W], found {image.dtype} {image.shape}")
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    buffer = io.BytesIO()
    with OpenEXR.File(header, {"Z": np.ascontiguousarray(image)}, num_threads=0) as file:
        file.write(buffer)
    return buffer.getvalue()


FIXED_DATE = (1980, 1, 1, 0, 0, 0)
"""Date of every member, so that equal depth gives equal bytes."""
HALF_MAX = 65504.0
"""Largest half-precision number; depth beyond it is written as unknown."""


def read_depth(path: Source, frames: Sequence[int] | None = None) -> Float[Tensor, "L H W"]:
    """z-depth of all frames, or of the given ones, float32; 0 where it is not positive or not finite."""
    with _opened(path) as archive:
        names = _frame_names(archive)
        missing = not names or (frames is not None and len(names) <= max(frames))
        images = (
            [] if missing else [_read_image(archive, names[frame]) for frame in frames or range(len(names))]
        )
    if missing:
        expected = "one EXR image per frame" if frames is None else f"images up to frame {max(frames)}"
        raise ValueError(f"depth {path} must hold {expected}, found {len(names)} images: write it again")
    if len({image.shape for image in images}) > 1:
        raise ValueError(f"depth {path} must have one image size, found several: write it again")
    depth = torch.from_numpy(np.stack(images))
    return torch.where(depth.isfinite() & (depth > 0), depth, 0.0)


def num_depth_frames(path: Source) -> int:
    """How many depth images a file holds."""
    with _opened(path) as archive:
        return len(_frame_names(archive))


def depth_bytes(depth: Float[Tensor, "L H W"]) -> bytes:
    """A zip of half-precision EXR images named 00000.exr onward; unknown depth is 0."""
    known = depth.isfinite() & (depth > 0) & (depth <= HALF_MAX)
    images = torch.where(known, depth, 0.0).half().cpu().numpy()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for number, image in enumerate(images):
            archive.writestr(zipfile.ZipInfo(f"{number:05d}.exr", FIXED_DATE), write_exr(image))
    return buffer.getvalue()


@contextmanager
def _opened(path: Source) -> Iterator[zipfile.ZipFile]:
    """An open archive; what is wrong with it becomes one sentence."""
    if not path.is_file():
        raise FileNotFoundError(f"depth {path} does not exist: write it, or train without the depth loss")
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, _ImageError) as error:
        raise ValueError(
            f"depth {path} must be a zip of EXR images, one per frame, found damage ({error}): write it again"
        ) from error


class _ImageError(Exception):
    """An image inside the archive cannot be read."""


def _read_image(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    try:
        return read_exr(archive.read(name))
    except ValueError as error:
        raise _ImageError(f"{name}: {error}") from error


def _frame_names(archive: zipfile.ZipFile) -> list[str]:
    return sorted(name for name in archive.namelist() if name.lower().endswith(".exr"))
