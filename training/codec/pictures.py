"""Pictures that lie on the device as stacks, with smaller copies of each, and how pixels are taken from them.

Shape letters: P pictures of a stack, B clips, L frames, H W size of the frames, S side of a stack's canvas.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

KINDS = ("photographs", "textures", "cutouts")
NUM_LEVELS = 3
"""Each picture is held at its size, at half and at a quarter of it."""
DECODERS = 16
"""Threads that unpack pictures."""


class Pack(Protocol):
    """What gives training pictures by kind."""

    def names(self, kind: str) -> Sequence[str]:
        """Names of the pictures of a kind: photographs, textures or cutouts."""
        ...

    def read(self, name: str) -> bytes:
        """A picture's file."""
        ...


class ZipPack:
    """A zip with photographs/, textures/ and cutouts/."""

    def __init__(self, path: Path) -> None:
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is no zip of training pictures: give the file of the recipe, PACK.zip")
        self.path = path
        with zipfile.ZipFile(path) as archive:
            self._files = {
                entry.filename: archive.read(entry) for entry in archive.infolist() if not entry.is_dir()
            }

    def names(self, kind: str) -> list[str]:
        """Names that begin with the kind's folder, sorted."""
        return sorted(name for name in self._files if name.startswith(f"{kind}/"))

    def read(self, name: str) -> bytes:
        """A picture's file."""
        return self._files[name]


@dataclass(frozen=True)
class PictureStack:
    """Pictures of one kind in the corners of square canvases: RGB repeats its edge there, RGBA is empty."""

    levels: tuple[UInt8[Tensor, "P C S S"], ...]
    """The canvases at full size, half size, ..."""
    sizes: tuple[Float[Tensor, "P 2"], ...]
    """Width and height of each picture in pixels, on every level."""

    def __len__(self) -> int:
        return len(self.levels[0])

    def take(self, indices: Tensor, level: int) -> tuple[Float[Tensor, "B C S S"], Float[Tensor, "B 2"]]:
        """Canvases, from 0 to 1, and picture sizes."""
        return self.levels[level][indices].float() / 255, self.sizes[level][indices]


@dataclass(frozen=True)
class TrainingPictures:
    """All that clips are made of."""

    photographs: PictureStack
    textures: PictureStack
    cutouts: PictureStack


def load_pictures(
    pack: Pack, device: torch.device, photograph_side: int, layer_side: int
) -> TrainingPictures:
    """The pack on `device`; photographs fit into squares of one side, textures and cut-outs into the other's.

    ValueError if a kind is missing or a picture cannot be read.
    """
    sides = {"photographs": photograph_side, "textures": layer_side, "cutouts": layer_side}
    return TrainingPictures(**{kind: _load_stack(pack, kind, sides[kind], device) for kind in KINDS})


def _load_stack(pack: Pack, kind: str, side: int, device: torch.device) -> PictureStack:
    names = list(pack.names(kind))
    if not names:
        raise ValueError(
            f"the pack holds no {kind}: expected {', '.join(KINDS)}, make it again by its recipe"
        )
    mode = "RGB" if kind == "photographs" else "RGBA"

    def unpack(name: str) -> list[tuple[np.ndarray, tuple[int, int]]]:
        try:
            with Image.open(io.BytesIO(pack.read(name))) as picture:
                return _canvases(picture.convert(mode), side)
        except OSError as error:
            raise ValueError(f"{name} of the pack is no picture ({error}): make the pack again") from error

    with ThreadPoolExecutor(DECODERS) as threads:
        pictures = list(threads.map(unpack, names))
    levels, sizes = [], []
    for level in range(NUM_LEVELS):
        stack = torch.from_numpy(np.stack([picture[level][0] for picture in pictures]))
        levels.append(stack.to(device).permute(0, 3, 1, 2).contiguous())
        sizes.append(
            torch.tensor([picture[level][1] for picture in pictures], dtype=torch.float32).to(device)
        )
    return PictureStack(tuple(levels), tuple(sizes))


def _canvases(picture: Image.Image, side: int) -> list[tuple[np.ndarray, tuple[int, int]]]:
    """Canvas and picture size on every level. Each is resized from the picture itself, without aliasing."""
    share = min(1.0, side / max(picture.size))
    canvases = []
    for level in range(NUM_LEVELS):
        width, height = (max(round(length * share / 2**level), 4) for length in picture.size)
        width, height = min(width, side >> level), min(height, side >> level)
        small = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
        edges = ((0, (side >> level) - height), (0, (side >> level) - width), (0, 0))
        beyond = "constant" if picture.mode == "RGBA" else "edge"
        canvases.append((np.pad(small, edges, mode=beyond), (width, height)))
    return canvases


def sample_pixels(
    canvases: Float[Tensor, "B C S S"],
    sizes: Float[Tensor, "B 2"],
    points: Float[Tensor, "B L H W 2"],
    outside: Literal["mirror", "nothing"],
) -> Float[Tensor, "B C L H W"]:
    """Colours at `points` (x, y in pixels of the picture, its first pixel's centre at 0.5), by cubic splines.

    Beyond its sides a picture is mirrored, or it ends (all channels 0, as around pictures with opacity).
    """
    if outside == "mirror":
        size = sizes[:, None, None, None]
        points = points.remainder(2 * size)
        points = torch.minimum(points, 2 * size - points)
        points = torch.minimum(points.clamp(min=0.5), size - 0.5)
    grid = 2 * points / canvases.shape[-1] - 1
    # Frames one below the other: the canvas need not be repeated for each.
    rows = grid.flatten(1, 2)
    padding = "border" if outside == "mirror" else "zeros"
    taken = functional.grid_sample(canvases, rows, mode="bicubic", padding_mode=padding, align_corners=False)
    return taken.unflatten(2, points.shape[1:3])
