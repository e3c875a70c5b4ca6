"""What every source of depth of one image gives, and the sources that need no network: a plane, or a file.

A file of depth that the user has already is .npy, .npz, 16-bit PNG or OpenEXR, for the picture as it is
given.

Shape letters: H W image.
"""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lyra_ns.cameras import cell_centres
from lyra_ns.data.depth_files import read_exr

ASSUMED_FOV = 58.0
"""Degrees across the longer side of clips where nothing says it: a focal length of 0.9 of that side, about a
phone's, which may have been held upright."""


@dataclass(frozen=True)
class DepthPrediction:
    """Depth of one image, and its camera where the estimator knows that, too."""

    depth: Float[Tensor, "H W"]
    """z-depth, 0 where unknown (sky, or outside the estimator's mask)."""
    intrinsics: Float[Tensor, " 4"] | None
    """fx, fy, cx, cy in pixels of this image: as given to the estimator, else as it found them, else None."""
    is_metric: bool
    """Whether a unit is meant to be a metre."""
    has_training_units: bool
    """Whether units are those that Lyra's data were made with (MoGe's first version, centre at depth 1)."""
    estimator: str
    """Name of what made it, for the record of a scene."""

    @property
    def known(self) -> Bool[Tensor, "H W"]:
        """Where there is depth."""
        return self.depth > 0

    def scaled(self, factor: float) -> DepthPrediction:
        """The same depth in other units."""
        return replace(self, depth=self.depth * factor, is_metric=self.is_metric and factor == 1)

    def filled(self, far: float) -> Float[Tensor, "H W"]:
        """Depth with `far` where it is unknown: what was not seen is taken for sky."""
        return torch.where(self.known, self.depth, far)


@runtime_checkable
class DepthEstimator(Protocol):
    """A source of depth."""

    @property
    def name(self) -> str:
        """What it is called in records."""
        ...

    def predict(
        self, image: Float[Tensor, "3 H W"], intrinsics: Float[Tensor, " 4"] | None = None
    ) -> DepthPrediction:
        """Depth of an image from 0 to 1; `intrinsics` in pixels of this image, where they are known."""
        ...


@dataclass(frozen=True)
class PlaneDepth:
    """Depth of the plane z = distance + slope_x x + slope_y y in front of the camera."""

    distance: float = 1.0
    """Depth on the view axis."""
    slope_x: float = 0.0
    """How much deeper the plane lies per unit to the right."""
    slope_y: float = 0.0
    """How much deeper it lies per unit downwards; negative for a floor."""
    fov_x: float = 60.0
    """Horizontal field of view in degrees of images whose intrinsics are not given."""

    @property
    def name(self) -> str:
        """`plane` with its numbers."""
        return f"plane({self.distance:g}, {self.slope_x:g}, {self.slope_y:g})"

    def predict(
        self, image: Float[Tensor, "3 H W"], intrinsics: Float[Tensor, " 4"] | None = None
    ) -> DepthPrediction:
        """Depth of the plane; 0 where a ray does not meet it."""
        if not self.distance > 0:
            raise ValueError(f"expected a plane in front of the camera, found distance {self.distance}")
        height, width = image.shape[1:]
        if intrinsics is None:
            intrinsics = intrinsics_of_fov(self.fov_x, height, width).to(image.device)
        fx, fy, cx, cy = intrinsics.to(image.dtype)
        x = (cell_centres(width, image) - cx) / fx
        y = (cell_centres(height, image) - cy) / fy
        approach = 1 - self.slope_x * x[None, :] - self.slope_y * y[:, None]
        depth = torch.where(approach > 0, self.distance / approach, 0.0)
        return DepthPrediction(depth, intrinsics, False, self.distance == 1, self.name)


def intrinsics_of_fov(fov_x: float, height: int, width: int) -> Float[Tensor, " 4"]:
    """fx, fy, cx, cy of square pixels, centred, with a horizontal field of view in degrees."""
    if not 0 < fov_x < 180:
        raise ValueError(f"expected a field of view between 0 and 180 degrees, found {fov_x}")
    return intrinsics_of_focal(width / 2 / math.tan(math.radians(fov_x) / 2), height, width)


def intrinsics_of_focal(focal: float, height: int, width: int) -> Float[Tensor, " 4"]:
    """fx, fy, cx, cy of square pixels, centred, with a focal length in pixels."""
    return torch.tensor([focal, focal, width / 2, height / 2])


ROUNDING = 1e-5
"""By how much resizing may leave the range of colours: weights add up to 1 but for a few last digits."""


def checked_image(image: Float[Tensor, "*any"]) -> Float[Tensor, "3 H W"]:
    """The image, if it has three finite channels from 0 to 1 but for rounding; ValueError otherwise."""
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"expected an image of shape [3, H, W], found {list(image.shape)}")
    if not bool(((image >= -ROUNDING) & (image <= 1 + ROUNDING)).all()):
        raise ValueError("expected colours from 0 to 1, found others: divide 8-bit values by 255")
    return image.clamp(0, 1)


def checked_depth(depth: Float[Tensor, "H W"], name: str) -> Float[Tensor, "H W"]:
    """Depth with 0 wherever it is not finite and positive; ValueError if nothing is left."""
    depth = torch.where(depth.isfinite() & (depth > 0), depth, 0.0)
    if not bool((depth > 0).any()):
        raise ValueError(f"{name} found no depth in this image: give another image, or depth of your own")
    return depth


SUFFIXES = (".npy", ".npz", ".png", ".exr")
"""Kinds of files that are read."""
METRES_PER_PNG_STEP = 1e-3
"""PNG files hold whole millimetres, as depth cameras write them."""
NPZ_NAME = "depth"
"""Array that is read of an .npz with several."""


def read_depth_file(path: Path) -> Float[Tensor, "H W"]:
    """z-depth of a file, 0 where it is not positive or not finite.

    .npy and .npz hold one array of numbers (of several the one called depth), .png 16-bit millimetres, .exr
    the channel Z or the only one. FileNotFoundError; ValueError for other files, shapes, or no depth at all.
    """
    if not path.is_file():
        raise FileNotFoundError(f"depth {path} does not exist: give a file, or choose an estimator")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"depth {path} must end in {', '.join(SUFFIXES)}, found {path.suffix!r}: convert it")
    try:
        values = _read(path)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, UnidentifiedImageError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"depth {path} must hold one array of depths, found {reason}: write it again"
        ) from error
    values = np.squeeze(values)
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise ValueError(
            f"depth {path} must hold numbers [height, width], found {values.dtype} {list(values.shape)}: "
            "write one depth for each pixel"
        )
    depth = torch.from_numpy(values.astype(np.float32))
    depth = torch.where(depth.isfinite() & (depth > 0), depth, 0.0)
    if not bool((depth > 0).any()):
        raise ValueError(f"depth {path} must be positive somewhere, found none: write distances in front")
    return depth


def _read(path: Path) -> np.ndarray:
    suffix = path.suffix.lower()
    if suffix == ".exr":
        return read_exr(path.read_bytes())
    if suffix == ".png":
        return _read_png(path)
    content = np.load(path, allow_pickle=False)
    if isinstance(content, np.ndarray):
        return content
    with content:
        if len(content.files) != 1 and NPZ_NAME not in content.files:
            raise ValueError(f"the arrays {', '.join(content.files) or '(none)'}, none of them called depth")
        return content[NPZ_NAME if NPZ_NAME in content.files else content.files[0]]


def _read_png(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        values = np.asarray(image)
        if not image.mode.startswith("I"):
            raise ValueError(f"a PNG of mode {image.mode} where 16-bit grey is meant")
    return values.astype(np.float32) * METRES_PER_PNG_STEP
