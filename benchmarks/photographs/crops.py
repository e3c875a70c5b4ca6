"""Centred parts of a photograph, and the cameras that see them.

Shape letters: H W image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from benchmarks.photographs.held_out import Picture
from lyra_ns.cameras import CameraPath


@dataclass(frozen=True)
class Crop:
    """The centred part of a photograph that has some aspect."""

    top: int
    """First row."""
    left: int
    """First column."""
    rows: int
    """Height in pixels of the photograph."""
    columns: int
    """Width in pixels of the photograph."""

    @classmethod
    def of_aspect(cls, picture: Picture, height: int, width: int) -> Crop:
        """The largest part of the aspect of `height` x `width`."""
        full_height, full_width = picture.shape[:2]
        ratio = min(full_height / height, full_width / width)
        rows, columns = int(height * ratio), int(width * ratio)
        return cls((full_height - rows) // 2, (full_width - columns) // 2, rows, columns)

    def resized(self, picture: Picture, height: int, width: int) -> Image.Image:
        """This part at another size."""
        part = picture[self.top : self.top + self.rows, self.left : self.left + self.columns]
        return Image.fromarray(part).resize((width, height), Image.Resampling.LANCZOS)

    def cut(self, picture: Picture, height: int, width: int) -> Float[Tensor, "H W 3"]:
        """Its colours at another size, from 0 to 1."""
        return torch.from_numpy(np.array(self.resized(picture, height, width))).float() / 255

    def share_of(self, picture: Picture) -> float:
        """How much of the photograph it keeps."""
        return self.rows * self.columns / (picture.shape[0] * picture.shape[1])

    def whole_lens(self, intrinsics: Float[Tensor, " 4"], height: int, width: int) -> Float[Tensor, " 4"]:
        """Intrinsics in pixels of the whole photograph from those of this part at a size."""
        scale = intrinsics.new_tensor([self.columns / width, self.rows / height] * 2)
        return intrinsics * scale + intrinsics.new_tensor([0, 0, self.left, self.top])

    def camera(self, whole_lens: Float[Tensor, " 4"], height: int, width: int) -> CameraPath:
        """The camera [] of this part at a size, where the world begins."""
        shift = whole_lens.new_tensor([0, 0, self.left, self.top])
        scale = whole_lens.new_tensor([width / self.columns, height / self.rows] * 2)
        return CameraPath(torch.eye(4), (whole_lens - shift) * scale, torch.tensor(0.0), height, width)
