"""Depth files: a zip of EXR images, one per frame (docs/reference/data_layout.md, "Files")."""

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

from lyra_ns.data.exr import read_exr, write_exr
from lyra_ns.data.files import Source

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
